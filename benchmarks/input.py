"""How fast each pipeline hands out training samples, beside decoding alone; host memory over an epoch.

    PYTHONPATH=benchmarks python benchmarks/input.py --data_dir=TFDS [--images=2000 --rounds=3 --workers=2]

ImageNet cannot be had everywhere: the images are cut-outs of scikit-learn's two photographs, of ImageNet's usual size
and bytes, in ImageNet's archives, prepared and read as ImageNet is. `--data_dir` holds TFDS's mnist and cifar10.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from _timing import machine, table
from PIL import Image

from jax_advtrain import data, devices
from jax_advtrain.data import originals, slots
from jax_advtrain.training import feed

BATCH = 128
SYNSETS = ("n01440764", "n01443537")
IMAGENET = {
    "name": "imagenet2012",
    "test_split": "validation",
    "validation_size": 0,
    "num_test": 8,
    "image_size": 224,
    "resize": 256,
    "augment": ("random_resized_crop", "flip"),
}


def photograph(number: int) -> bytes:
    """About 500 x 375 pixels and 110 kB, as the middle of ImageNet's."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(number)
    whole = Image.fromarray(load_sample_images().images[number % 2]).resize((960, 640), Image.Resampling.BICUBIC)
    height, width = int(rng.integers(330, 420)), int(rng.integers(450, 550))
    left, top = int(rng.integers(960 - width)), int(rng.integers(640 - height))
    content = io.BytesIO()
    whole.crop((left, top, left + width, top + height)).save(content, "JPEG", quality=98)
    return content.getvalue()


def archives(folder: Path, images: list[bytes]) -> None:
    def tar(files: dict[str, bytes]) -> bytes:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for name, one in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(one)
                archive.addfile(member, io.BytesIO(one))
        return content.getvalue()

    classes = {}
    for k, synset in enumerate(SYNSETS):
        classes[f"{synset}.tar"] = tar({f"{synset}_{n}.JPEG": one for n, one in enumerate(images[k::2])})
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(classes))
    few = {f"ILSVRC2012_val_{n + 1:08d}.JPEG": one for n, one in enumerate(images[:8])}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(few))


def simplejpeg_rgb(content: bytes):
    import simplejpeg

    return simplejpeg.decode_jpeg(content, "RGB")


def opencv_rgb(content: bytes):
    import cv2

    cv2.setNumThreads(0)
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


def pillow_rgb(content: bytes):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


DECODERS = {"simplejpeg": simplejpeg_rgb, "OpenCV": opencv_rgb, "Pillow": pillow_rgb}


def decode_for(decoder: str, images: list[bytes], seconds: float, start, results) -> None:
    """Decodes until the time is up; in a process of its own."""
    decode = DECODERS[decoder]
    for content in images[:8]:
        decode(content)
    start.wait()
    began, count = time.perf_counter(), 0
    for content in itertools.cycle(images):
        decode(content)
        count += 1
        if time.perf_counter() - began > seconds:
            break
    results.put(count / (time.perf_counter() - began))


def bare_decoding(decoder: str, images: list[bytes], processes: int, seconds: float = 4.0) -> float:
    """Images a second that so many processes decode from memory, and do nothing else with."""
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(processes), spawn.Queue()
    parts = [images[k::processes][:200] for k in range(processes)]
    running = [spawn.Process(target=decode_for, args=(decoder, part, seconds, start, results)) for part in parts]
    for one in running:
        one.start()
    rate = sum(results.get() for _ in running)
    for one in running:
        one.join()
    return rate


def memory_mb() -> float:
    """Proportional memory of this process and its children."""
    total, here = 0, os.getpid()
    for status in Path("/proc").glob("[0-9]*/smaps_rollup"):
        try:
            number = int(status.parent.name)
            parent = int((status.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if number == here or parent == here:
                total += next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:4] == "Pss:")
        except (OSError, StopIteration):
            continue
    return total / 1000


def feed_rate(config: dict, epochs: int, skipped: int, *, watch_memory: bool = False) -> tuple[float, list[float]]:
    """Samples a second that arrive on the device, after the first `skipped` batches; memory at eight moments."""
    mesh, train = devices.make_mesh(), data.load(config).train
    visits = slots.Visits(slots.make_slots(len(train), 8, 0), BATCH, 0)
    steps = epochs * visits.steps_per_epoch
    waiting, memory, counts = feed.Waiting(), [], []
    with feed.ahead(feed.batches(mesh, train, visits, 0, steps), waiting) as batches:
        for step, batch in enumerate(batches):
            batch.images.block_until_ready()
            if step == skipped:
                started = time.perf_counter()
            elif step > skipped:
                counts.append(int((visits(step).positions >= 0).sum()))
            if watch_memory and (step + 1) % max(1, steps // 8) == 0:
                memory.append(memory_mb())
    return sum(counts) / (time.perf_counter() - started), memory


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    images = [photograph(number) for number in range(asked.images)]
    print(f"{machine()}; {asked.images} images of {np.mean([len(one) for one in images]) / 1000:.0f} kB on average\n")
    with tempfile.TemporaryDirectory() as scratch:
        archives(Path(scratch), images)
        originals.prepare("imagenet2012", Path(scratch) / "tfds", Path(scratch))
        config = {**IMAGENET, "data_dir": f"{scratch}/tfds", "num_workers": asked.workers}
        decoders = dict.fromkeys(DECODERS, 0.0)
        floor, best, memory = 0.0, 0.0, []
        ratios = []
        for _ in range(asked.rounds):
            for name in decoders:
                decoders[name] = max(decoders[name], bare_decoding(name, images, 1))
            here = bare_decoding("simplejpeg", images, asked.workers)
            rate, memory = feed_rate(config, 3, 4 * asked.workers, watch_memory=True)
            floor, best = max(floor, here), max(best, rate)
            ratios.append(rate / here)
        print("Decoding to RGB, one process, images/s (best):")
        print(table(["decoder", "images/s"], [[name, f"{rate:.0f}"] for name, rate in decoders.items()]), "\n")
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"ImageNet, {asked.workers} workers, batch {BATCH}: bare decoding {floor:.0f}, pipeline {best:.0f} images/s"
        )
        print(f"(best of {asked.rounds} rounds); pipeline / bare decoding {best / floor:.2f}; round by round {each}")
        print(
            f"Memory (Pss, MB) of the program and its workers over 3 epochs: {', '.join(f'{m:.0f}' for m in memory)}\n"
        )
    rows = []
    for name, more in (("mnist", {}), ("cifar10", {}), ("cifar10", {"streaming": True, "num_workers": asked.workers})):
        fields = {"name": name, "data_dir": asked.data_dir, "validation_size": 0, "num_test": 8, "num_train": 20000}
        rate = max(feed_rate({**fields, **more}, 3, 16)[0] for _ in range(asked.rounds))
        rows.append([name, "streamed" if more else "in memory", f"{rate:.0f}"])
    print("Other sets, samples/s on the device, without augmentation (best):")
    print(table(["set", "images", "samples/s"], rows))


if __name__ == "__main__":
    main()
