"""The S3 bucket, or anything that speaks its language: datasets and checkpoints there and back.

manager = S3Manager("my-bucket")                   # or S3Manager.from_config(config.storage)
manager.upload_dataset("work/shards", "furnclip/shards")
manager.download_dataset("furnclip/shards", "work/shards")
"""

from furnclip.storage.manager import S3Manager

__all__ = ["S3Manager"]
