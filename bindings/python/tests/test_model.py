"""The module gives what the Rust crates give, and says what is wrong otherwise.

`TPVIT_GOLDEN` names the folder that bindings/common/examples/golden_run.rs wrote.
"""

import os
import pathlib
import threading

import numpy as np
import pytest

import tpvit

GOLDEN = pathlib.Path(os.environ["TPVIT_GOLDEN"])
PATH = GOLDEN / "model.tpv"
PIXELS = np.fromfile(GOLDEN / "pixels.rgb", np.uint8).reshape(32, 32, 3)
LOGITS = np.fromfile(GOLDEN / "logits.f32", np.float32)


@pytest.fixture
def model():
    return tpvit.Model(PATH)


def same_bits(a, b):
    assert a.dtype == b.dtype == np.float32
    assert a.shape == b.shape
    return a.tobytes() == b.tobytes()


@pytest.mark.parametrize("source", [PATH, str(PATH), PATH.read_bytes()], ids=["path", "str", "bytes"])
@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"isa": "portable"}], ids=str)
def test_gives_the_bits_of_the_rust_crate(source, options):
    model = tpvit.Model(source, **options)
    assert same_bits(model.run(PIXELS), LOGITS)


def test_says_what_it_is(model):
    assert model.image_size == (32, 32)
    assert model.output_shape == (11,)
    assert model.classes == 11
    assert model.labels == [f"class {i}" for i in range(11)]
    assert model.resize == 36
    assert model.interpolation == "bicubic"
    assert model.threads == 1
    assert tpvit.Model(PATH, threads=3).threads == 3
    assert tpvit.Model(PATH, isa="portable").isa == "portable"
    assert model.isa in repr(model) and "32 x 32" in repr(model)
    assert model.memory_bytes > 0
    assert tpvit.__version__.count(".") == 2


def test_a_batch_is_its_pictures(model):
    batch = np.stack([PIXELS, PIXELS[::-1], 255 - PIXELS])
    results = model.run(batch)
    assert results.shape == (3, 11)
    for picture, result in zip(batch, results):
        assert same_bits(model.run(picture), result)
    assert same_bits(results[0], LOGITS)
    assert model.run(batch[:0]).shape == (0, 11)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x[::-1].copy()[::-1],
        lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0),
        lambda x: np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].reshape(x.shape),
    ],
    ids=["fortran", "strided", "negative", "planar", "unaligned and read-only"],
)
def test_any_layout_gives_the_same(model, layout):
    pixels = layout(PIXELS)
    assert (pixels == PIXELS).all()
    assert same_bits(model.run(pixels), LOGITS)


def test_the_result_is_the_callers_own(model):
    first = model.run(PIXELS)
    model.run(255 - PIXELS)
    assert same_bits(first, LOGITS)
    first[:] = 0
    assert same_bits(model.run(PIXELS), LOGITS)


def test_classify(model):
    best = model.classify(PIXELS, top=3)
    assert [label for label, _ in best] == [f"class {i}" for i in np.argsort(-LOGITS)[:3]]
    everything = model.classify(PIXELS, top=100)
    assert len(everything) == 11
    assert everything[:3] == best
    assert len(model.classify(PIXELS)) == 5
    exp = np.exp(LOGITS.astype(np.float64) - LOGITS.max())
    expected = np.sort(exp / exp.sum())[::-1]
    # 2e-7 of each exp and of their sum, which is at least 1.
    np.testing.assert_allclose([p for _, p in everything], expected, rtol=0, atol=4e-6)
    assert model.classify(PIXELS, top=0) == []
    with pytest.raises(ValueError, match="one picture"):
        model.classify(PIXELS[None])


def test_wrong_pixels(model):
    with pytest.raises(TypeError, match="no numpy array but list"):
        model.run(PIXELS.tolist())
    with pytest.raises(TypeError, match="dtype float32, the model takes uint8"):
        model.run(PIXELS.astype(np.float32))
    for shape in [(32, 32), (3, 32, 32), (32, 31, 3), (1, 1, 32, 32, 3), (1, 32, 32, 4), ()]:
        with pytest.raises(ValueError, match=r"the model takes \[32, 32, 3\] or \[n, 32, 32, 3\]"):
            model.run(np.zeros(shape, np.uint8))


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such.tpv"):
        tpvit.Model("no-such.tpv")
    with pytest.raises(OSError, match=str(tmp_path)):
        tpvit.Model(tmp_path)
    with pytest.raises(ValueError, match="test_model.py"):
        tpvit.Model(__file__)
    data = PATH.read_bytes()
    for broken in [b"", data[:-1], data[:-1] + bytes([data[-1] ^ 1])]:
        with pytest.raises(ValueError, match="the model in memory"):
            tpvit.Model(broken)
    with pytest.raises(TypeError):
        tpvit.Model(3.5)


def test_wrong_options():
    for threads in [0, 1025]:
        with pytest.raises(ValueError, match=f"not {threads}"):
            tpvit.Model(PATH, threads=threads)
    with pytest.raises(OverflowError):
        tpvit.Model(PATH, threads=-1)
    with pytest.raises(ValueError, match="portable, avx2"):
        tpvit.Model(PATH, isa="sse2")
    for isa in ["avx2", "neon"]:  # no CPU has both
        try:
            tpvit.Model(PATH, isa=isa)
        except ValueError as error:
            assert f"no {isa}" in str(error)
            break
    else:
        pytest.fail("both instruction sets at once")
    with pytest.raises(TypeError):
        tpvit.Model(PATH, 2)


def test_threads_take_turns(model):
    wrong = []

    def work(picture, expected):
        for _ in range(50):
            if not same_bits(model.run(picture), expected):
                wrong.append(picture)

    pictures = [np.roll(PIXELS, i) for i in range(8)]
    threads = [threading.Thread(target=work, args=(p, model.run(p))) for p in pictures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
