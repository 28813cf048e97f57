"""Shards in, vectors out: one pass over them for the base and the fine-tuned model.

In: `work/shards/`, the base model and a finished run.
Out: `work/embeddings/master_vectors.parquet`, and the search table built from it, `work/index.lance`.

    encoding   samples of the shards to an Arrow table of vectors, a row group at a time
    plan       which models, in which precision, with which image weight
    parts      one file a row group until the vector file is complete
    pipeline   all of it in order
    generator  `EmbeddingGenerator`: the same as a class, and for any plain CLIP of Hugging Face
"""

from furnclip.embed.generator import EmbeddingGenerator as EmbeddingGenerator
from furnclip.embed.pipeline import EmbedSummary as EmbedSummary
from furnclip.embed.pipeline import embed_catalogue as embed_catalogue
