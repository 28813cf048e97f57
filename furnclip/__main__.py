"""`python -m furnclip`, and what torchrun starts."""

from furnclip.cli import main

if __name__ == "__main__":
    main()
