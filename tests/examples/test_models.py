from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tangram.node.runtimes.embedded import Inputs, Model

from .conftest import EXAMPLES

Example = Callable[[str], Model]


def texts(*given: str) -> Inputs:
    return Inputs({"text": np.array([text.encode() for text in given], object)})


def test_committed_files_are_small() -> None:
    sizes = {
        path: path.stat().st_size
        for path in EXAMPLES.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".py")
    }
    assert max(sizes.values()) < 300_000
    assert sum(sizes.values()) < 1_000_000


# --- digits --------------------------------------------------------------------------------------------------------


def test_digits_are_read_right_on_images_held_out(example: Example) -> None:
    held_out = np.load(EXAMPLES / "models/digits/heldout.npz")
    images, labels = held_out["images"].astype(np.float32), held_out["labels"]
    result = example("digits").predict(Inputs({"image": images}))
    assert len(labels) == 360
    assert (result["label"] == labels).mean() >= 0.97
    assert result["probabilities"].sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (result["probabilities"].argmax(axis=1) == result["label"]).all()


def test_digits_one_at_a_time_are_the_same_as_many(example: Example) -> None:
    model = example("digits")
    images = np.load(EXAMPLES / "models/digits/heldout.npz")["images"][:20].astype(np.float32)
    together = model.predict(Inputs({"image": images}))["probabilities"]
    apart = np.concatenate([model.predict(Inputs({"image": i[None]}))["probabilities"] for i in images])
    assert apart == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("pixel", [-1, 17, np.nan, np.inf])
def test_digits_refuse_what_is_no_image(example: Example, pixel: float) -> None:
    with pytest.raises(ValueError, match=r"pixels must lie between 0 \(paper\) and 16 \(ink\)"):
        example("digits").predict(Inputs({"image": np.full((1, 8, 8), pixel, np.float32)}))


# --- embedder ------------------------------------------------------------------------------------------------------


def rows(name: str) -> list[tuple[str, str]]:
    lines = (EXAMPLES / "models/embedder" / name).read_text(encoding="utf-8").splitlines()
    return [(topic, text) for topic, _, text in (line.partition("\t") for line in lines)]


def test_queries_find_sentences_of_their_topic(example: Example) -> None:
    topic_of = {text: topic for topic, text in rows("corpus.tsv")}
    queries = rows("queries.tsv")
    nearest = example("embedder").predict(texts(*(text for _, text in queries)))["nearest"][:, 0]
    right = sum(topic_of[found.decode()] == topic for found, (topic, _) in zip(nearest, queries, strict=True))
    assert len(queries) == 48
    assert right >= 0.9 * len(queries)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("How do I make pasta?", "Boil the pasta in plenty of salted water"),
        ("an unwell dog", "The cat slept on the sofa and the dog barked"),
        ("which planet is the largest", "Jupiter is the largest planet"),
        ("my computer program crashes", "The program crashed because a pointer"),
    ],
)
def test_neighbours_make_sense(example: Example, query: str, expected: str) -> None:
    found = example("embedder").predict(texts(query))["nearest"][0, 0].decode()
    assert found.startswith(expected)


def test_words_that_belong_together_are_close_without_sharing_a_letter_group(example: Example) -> None:
    umbrella, rain, mortgage = example("embedder").embed(["umbrella", "rain", "mortgage"])
    assert umbrella @ rain > 0.2
    assert umbrella @ mortgage < 0.2


def test_vectors_have_length_one_and_a_sentence_is_nearest_to_itself(example: Example) -> None:
    model = example("embedder")
    sentences = [text for _, text in rows("corpus.tsv")]
    result = model.predict(texts(*sentences))
    assert np.linalg.norm(result["embedding"], axis=1) == pytest.approx(1, abs=1e-5)
    assert [found.decode() for found in result["nearest"][:, 0]] == sentences
    assert result["similarity"][:, 0] == pytest.approx(1, abs=1e-5)
    assert (np.diff(result["similarity"], axis=1) <= 0).all()
    assert np.array_equal(model.embed(sentences), result["embedding"])


def test_a_text_without_a_word_is_zero_and_top_k_is_held(example: Example) -> None:
    model = example("embedder")
    inputs = texts("?!")
    inputs.parameters = {"top_k": 5}
    result = model.predict(inputs)
    assert not result["embedding"].any()
    assert result["nearest"].shape == (1, 5)
    inputs.parameters = {"top_k": 0}
    with pytest.raises(ValueError, match="parameter top_k: 0 is not a whole number from 1 to 10"):
        model.predict(inputs)


# --- imagefilter ---------------------------------------------------------------------------------------------------

IMAGES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)))
keeps_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


def filtered(model: Model, image: np.ndarray, name: str, **parameters: float) -> np.ndarray:
    return model.predict(Inputs({"image": image}, {"filter": name} | parameters))["image"].astype(int)


@keeps_fixture
@given(IMAGES, st.floats(0.3, 5))
def test_a_blur_keeps_the_range_and_smooths(example: Example, image: np.ndarray, sigma: float) -> None:
    model = example("imagefilter")
    blurred = filtered(model, image, "gaussian", sigma=sigma)
    assert blurred.shape == image.shape
    assert blurred.min() >= image.min()
    assert blurred.max() <= image.max()

    def roughness(picture: np.ndarray) -> float:
        return float(np.abs(np.diff(picture.astype(int), axis=0)).sum())

    assert roughness(blurred) <= roughness(image) + image.size, "rounding may add one a pixel"


@keeps_fixture
@given(st.integers(0, 255), st.integers(1, 9), st.integers(1, 9))
def test_a_plain_image_stays_plain(example: Example, value: int, height: int, width: int) -> None:
    model = example("imagefilter")
    image = np.full((height, width, 3), value, np.uint8)
    for name in ("gaussian", "sharpen", "greyscale"):
        assert (filtered(model, image, name) == value).all()
    assert not filtered(model, image, "edges").any()


def test_a_blurred_point_is_a_gaussian(example: Example) -> None:
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    blurred = filtered(example("imagefilter"), image, "gaussian", sigma=1.0)
    assert blurred[20, 20, 0] == pytest.approx(255 / (2 * np.pi), abs=1), "the density at the mean, sigma 1"
    assert blurred[20, 21, 0] == pytest.approx(blurred[20, 20, 0] * np.exp(-0.5), abs=1)
    assert np.array_equal(blurred, blurred[::-1])
    assert np.array_equal(blurred, blurred.transpose(1, 0, 2))
    assert blurred.sum() == pytest.approx(3 * 255, rel=0.1)


def test_edges_are_where_the_step_is(example: Example) -> None:
    image = np.zeros((9, 10, 3), np.uint8)
    image[:, 5:] = 255
    edges = filtered(example("imagefilter"), image, "edges")
    assert (edges[:, 4:6] == 255).all()
    assert not edges[:, :4].any()
    assert not edges[:, 6:].any()


def test_sharpening_undoes_part_of_a_blur(example: Example) -> None:
    model = example("imagefilter")
    image = np.zeros((30, 30, 3), np.uint8)
    image[8:22, 8:22] = 200
    blurred = filtered(model, image, "gaussian", sigma=1.5)
    sharpened = filtered(model, blurred.astype(np.uint8), "sharpen", sigma=1.5)
    assert np.abs(sharpened - image).sum() < np.abs(blurred - image).sum()


def test_greyscale_weighs_green_most(example: Example) -> None:
    pure = np.eye(3, dtype=np.uint8)[None] * 255
    assert filtered(example("imagefilter"), pure, "greyscale")[0, :, 0].tolist() == [76, 150, 29]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"filter": "sepia"}, "parameter filter: 'sepia' is not one of gaussian, sharpen, edges, greyscale"),
        ({"sigma": 0}, "parameter sigma: 0 is not a number of pixels above 0"),
        ({"sigma": "wide"}, "parameter sigma: 'wide'"),
    ],
)
def test_imagefilter_refuses_by_name(example: Example, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example("imagefilter").predict(Inputs({"image": np.zeros((2, 2, 3), np.uint8)}, parameters))


# --- ngram ---------------------------------------------------------------------------------------------------------


def test_the_model_knows_its_text_and_guesses_the_rest_of_it(example: Example) -> None:
    model = example("ngram")
    text = (EXAMPLES / "models/ngram/text.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    seen, unseen, noise = model.predict(texts(text[1000:2000], text[cut:], "xqzj vkwq zzxq jqvx"))["bits_per_character"]
    assert seen < 1.5
    assert unseen < 3.0, "a uniform guess takes 5.9 bits"
    assert noise > 5.0


def test_the_committed_counts_are_those_of_the_text(example: Example) -> None:
    module = sys.modules[type(example("ngram")).__module__]
    text = (EXAMPLES / "models/ngram/text.txt").read_text(encoding="utf-8")
    alphabet, tables = module.count(text[: len(text) * 9 // 10], module.ORDER)
    committed = np.load(EXAMPLES / "models/ngram/counts.npz")
    assert str(committed["alphabet"]) == alphabet
    for n, (grams, counts) in enumerate(tables):
        assert np.array_equal(committed[f"g{n}"], grams)
        assert np.array_equal(committed[f"c{n}"], counts)


def test_a_seed_gives_the_same_text_again(example: Example) -> None:
    model = example("ngram")

    def write(seed: int | None, temperature: float = 0.8) -> str:
        return "".join(model.generate("The Rabbit ", 200, temperature, seed, ()))

    assert write(1) == write(1) != write(2)
    assert len(write(1)) == 200
    assert write(1, 0) == write(2, 0), "at temperature 0 nothing is drawn"
    assert write(-(2**70)), "any whole number is a seed"


def test_generated_text_is_words_of_the_book(example: Example) -> None:
    book = set((EXAMPLES / "models/ngram/text.txt").read_text(encoding="utf-8").split())
    words = "".join(example("ngram").generate("Alice was ", 600, 0.5, 3, ())).split()[:-1]
    assert sum(word in book for word in words) > 0.8 * len(words)


def test_any_prompt_is_continued(example: Example) -> None:
    for prompt in ("", "日本", "A" * 9):
        assert len(list(example("ngram").generate(prompt, 5, 1.0, 1, ()))) == 5


def test_successors_are_a_distribution(example: Example) -> None:
    model = example("ngram")._model
    for context in ("", "t", "th", "the Rabbit", "zzzzz"):
        assert model.successors(model.encode(context)).sum() == pytest.approx(1)


def test_a_chat_continues_what_the_user_said_last(example: Example) -> None:
    said = [("system", "be brief"), ("user", "Alice"), ("assistant", "fell"), ("user", "The Rabbit")]
    assert example("ngram").chat_prompt(said) == "The Rabbit"


def test_ngram_refuses_text_it_cannot_read(example: Example) -> None:
    with pytest.raises(ValueError, match="holds no character that the model knows"):
        example("ngram").predict(texts("日本"))
    with pytest.raises(ValueError, match="max_tokens: 5000 is more than"):
        list(example("ngram").generate("", 5000, 1.0, None, ()))
