"""How fast each pipeline hands out training samples, beside decoding alone; host memory over an epoch.

    PYTHONPATH=benchmarks python benchmarks/input.py --data_dir=TFDS [--images=2000 --rounds=3 --workers=2]

ImageNet cannot be had everywhere: the images are cut-outs of scikit-learn's two photographs, of ImageNet's usual size
and bytes, in ImageNet's archives, prepared and read as ImageNet is. `--data_dir` holds TFDS's mnist and cifar10.

Besides the clock, processor time an image is told (of the program and its workers together): others on the machine
hardly change it, and where all cores are busy its ratio is that of a quiet machine's clock.
"""

import argparse
import io
import itertools
import math
import multiprocessing
import os
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

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
    began, processor, count = time.perf_counter(), time.process_time(), 0
    for content in itertools.cycle(images):
        decode(content)
        count += 1
        if time.perf_counter() - began > seconds:
            break
    results.put((count / (time.perf_counter() - began), (time.process_time() - processor) / count))


def bare_decoding(decoder: str, images: list[bytes], processes: int, seconds: float = 4.0) -> tuple[float, float]:
    """Images a second that so many processes decode from memory, and do nothing else with; processor seconds each."""
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(processes), spawn.Queue()
    parts = [images[k::processes][:200] for k in range(processes)]
    running = [spawn.Process(target=decode_for, args=(decoder, part, seconds, start, results)) for part in parts]
    for one in running:
        one.start()
    rates, costs = zip(*(results.get() for _ in running), strict=True)
    for one in running:
        one.join()
    return sum(rates), sum(costs) / len(costs)


def own_processes() -> list[tuple[Path, list[str]]]:
    """This process and its children: their folders in /proc, and the fields of `stat` from the state on."""
    found, here = [], str(os.getpid())
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if here in (folder.name, fields[1]):
            found.append((folder, fields))
    return found


def memory_mb() -> float:
    """Proportional memory of this process and its children."""
    rollups = [(folder / "smaps_rollup").read_text().splitlines() for folder, _ in own_processes()]
    return sum(int(line.split()[1]) for lines in rollups for line in lines if line.startswith("Pss:")) / 1000


def processor_seconds() -> float:
    """User and system time of this process and its children so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(int(fields[11]) + int(fields[12]) for _, fields in own_processes()) / ticks


class Fed(NamedTuple):
    """Samples a second that arrive on the device, processor seconds of a sample, memory at eight moments (MB)."""

    rate: float
    cost: float
    memory: list[float]


def feed_rate(config: dict, epochs: int, skipped: int, *, watch_memory: bool = False) -> Fed:
    """Of all batches but the first and the last `skipped`, when workers start and have ended.

    Looking at the memory takes time: a run that does is not to be timed.
    """
    mesh, train = devices.make_mesh(), data.load(config).train
    visits = slots.Visits(slots.make_slots(len(train), 8, 0), BATCH, 0)
    steps = epochs * visits.steps_per_epoch
    memory, count, began, ended = [], 0, (0.0, 0.0), (0.0, 0.0)
    with feed.ahead(feed.batches(mesh, train, visits, 0, steps), feed.Waiting()) as batches:
        for step, batch in enumerate(batches):
            batch.images.block_until_ready()
            if step == skipped:
                began = time.perf_counter(), processor_seconds()
            elif skipped < step < steps - skipped:
                count += int((visits(step).positions >= 0).sum())
            if step == steps - skipped - 1:
                ended = time.perf_counter(), processor_seconds()
            if watch_memory and (step + 1) % max(1, steps // 8) == 0:
                memory.append(memory_mb())
    return Fed(count / (ended[0] - began[0]), (ended[1] - began[1]) / count, memory)


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
        decoders = dict.fromkeys(DECODERS, (0.0, math.inf))
        rounds = []
        for _ in range(asked.rounds):
            for name, (rate, cost) in decoders.items():
                here = bare_decoding(name, images, 1)
                decoders[name] = max(rate, here[0]), min(cost, here[1])
            floor = bare_decoding("simplejpeg", images, asked.workers)
            fed = feed_rate(config, 3, 4 * asked.workers)
            rounds.append((*floor, fed.rate, fed.cost))
        memory = feed_rate(config, 3, 4 * asked.workers, watch_memory=True).memory
        print("Decoding to RGB, one process (best):")
        rows = [[name, f"{rate:.0f}", f"{1e3 * cost:.2f}"] for name, (rate, cost) in decoders.items()]
        print(table(["decoder", "images/s", "processor ms an image"], rows), "\n")
        print(f"ImageNet, {asked.workers} workers, batch {BATCH}, round by round:")
        rows = [
            [
                f"{floor:.0f}",
                f"{rate:.0f}",
                f"{rate / floor:.2f}",
                f"{1e3 * bare:.2f}",
                f"{1e3 * cost:.2f}",
                f"{bare / cost:.2f}",
            ]
            for floor, bare, rate, cost in rounds
        ]
        header = ["bare decoding, images/s", "pipeline", "ratio", "bare decoding, processor ms", "pipeline", "ratio"]
        print(table(header, rows), "\n")
        print(
            f"Memory (Pss, MB) of the program and its workers over 3 epochs: {', '.join(f'{m:.0f}' for m in memory)}\n"
        )
    rows = []
    for name, more in (("mnist", {}), ("cifar10", {}), ("cifar10", {"streaming": True, "num_workers": asked.workers})):
        fields = {"name": name, "data_dir": asked.data_dir, "validation_size": 0, "num_test": 8, "num_train": 20000}
        rate = max(feed_rate({**fields, **more}, 3, 16).rate for _ in range(asked.rounds))
        rows.append([name, "streamed" if more else "in memory", f"{rate:.0f}"])
    print("Other sets, samples/s on the device, without augmentation (best):")
    print(table(["set", "images", "samples/s"], rows))


if __name__ == "__main__":
    main()
