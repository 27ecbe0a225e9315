"""Prepares a set with TFDS's own builder and real TensorFlow, in an environment that has both:

    PYTHON tests/data_room/tfds_with_tensorflow.py NAME SOURCE DATA_DIR

SOURCE holds the files as the set's authors give them away (unpacked where they come in an archive). What the builder
would download is taken from there.
"""

import sys
from pathlib import Path

import tensorflow_datasets as tfds


def main(name: str, source: Path, data_dir: Path) -> None:
    def download(manager, urls):
        if isinstance(urls, dict):
            return {key: download(manager, url) for key, url in urls.items()}
        found = list(source.rglob(str(urls).rsplit("/", 1)[-1]))
        assert len(found) == 1, (urls, found)
        return found[0]

    tfds.download.DownloadManager.download = download
    tfds.download.DownloadManager.download_and_extract = lambda manager, url: source
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(
        manual_dir=source, compute_stats=tfds.download.ComputeStatsMode.SKIP, try_download_gcs=False
    )
    builder.download_and_prepare(download_config=config)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
