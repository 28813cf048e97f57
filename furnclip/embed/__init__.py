"""Catalogue in, vectors out: one pass over the pictures for the base and the fine-tuned model.

In: `work/clean/cleaned.csv` (or the raw catalogue), the pictures, groups and splits from
`work/shards/` where there are any, the base model and a finished run.
Out: `work/embeddings/master_vectors.parquet`, and the search table built from it, `work/index.lance`.

    rows       a catalogue row as it is stored, its caption, its picture candidates, its content hash
    sources    which models, in which arithmetic, checked against float32 on a sample
    parts      one small file a row group while the work goes on; earlier vectors that still hold
    fusion     the picture's share in the fused vector, chosen on validation
    pipeline   all of it in order
    generator  `EmbeddingGenerator`: the same as a class, and for any plain CLIP of Hugging Face

The picture's share is chosen with queries made of the attributes that captions also spell out, so it
leans towards the text; set `embed.image_weight` where your customers search by picture.
"""

from furnclip.embed.generator import EmbeddingGenerator
from furnclip.embed.pipeline import Summary, embed_catalogue

__all__ = ["EmbeddingGenerator", "Summary", "embed_catalogue"]
