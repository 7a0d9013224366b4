"""Picture tokens in the core, over tiny models of six families: the model's own numbers, edits by what a token is of, generation."""
import numpy as np
import pytest
import torch
from PIL import Image

from seeing_models import FAMILIES, tiny_seeing
from tokenscope import Edit, Scope
from tokenscope.text.names import ScopeError
from tokenscope.text.pictures import as_picture


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def asked(*pictures, text="what is it?"):
    return [{"role": "user", "content": [*({"type": "image", "image": p} for p in pictures), text]}]


ONE = asked(picture(30, 20))
TWO = asked(picture(30, 20), picture(16, 40, 1), text="which?")
NONE = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module", params=FAMILIES)
def scope(request):
    model, processor = tiny_seeing(request.param)
    return Scope(model, processor)


def own(scope, chat):
    "The model's own hidden states and logits, by its processor alone."
    clean = [{**m, "content": [p if isinstance(p, dict) else {"type": "text", "text": p} for p in ([m["content"]] if isinstance(m["content"], str) else m["content"])]} for m in chat]
    given = scope.processor.apply_chat_template(clean, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    given.pop("labels", None)
    with torch.no_grad():
        out = scope.model(**given, output_hidden_states=True)
    return given, out


def test_tokens_know_their_places(scope):
    batch = scope.encode(TWO)
    given, _ = own(scope, TWO)
    assert batch.input_ids.tolist() == given["input_ids"].tolist()
    (tokens,) = batch.tokens
    at = [i for i, patch in enumerate(tokens.patches) if patch]
    assert at == batch.is_image[0].nonzero()[:, 0].tolist() and at
    assert {tokens.patches[i].picture for i in at} == {0, 1}
    first = [tokens.patches[i] for i in at if tokens.patches[i].picture == 0 and tokens.patches[i].tile == 0]
    assert sum((p.box[2] - p.box[0]) * (p.box[3] - p.box[1]) for p in first) <= 1 + 1e-9  # they do not overlap
    assert len({(p.row, p.column) for p in first}) == len(first)


def test_the_models_own_numbers(scope):
    for chat in (ONE, TWO):
        _, right = own(scope, chat)
        trace = scope.read(chat, ["resid_post", "logits"])
        torch.testing.assert_close(trace["logits"], right.logits, rtol=1e-4, atol=1e-4)
        for layer in range(scope.n_layers - 1):
            torch.testing.assert_close(trace.at("resid_post", layer), right.hidden_states[layer + 1], rtol=1e-4, atol=1e-4)


def test_positions_by_what_a_token_is_of(scope):
    whole = scope.read(ONE, "resid_post")
    seen = scope.encode(ONE).is_image[0]
    for word, meant in (("image", seen), ("text", ~seen)):
        part = scope.read(ONE, "resid_post", positions=word)
        torch.testing.assert_close(part["resid_post"][0], whole["resid_post"][0][:, meant])
        assert len(part.tokens[0]) == int(meant.sum())


def test_an_edit_of_the_picture(scope):
    seen = scope.encode(ONE).is_image[0]
    plain = scope.read(ONE, "resid_post", layers=1)["resid_post"][0, 0]
    with scope.edit(Edit("resid_post", layers=1, add=1.0, positions="image")):
        changed = scope.read(ONE, "resid_post", layers=1)["resid_post"][0, 0]
    torch.testing.assert_close(changed, plain + seen[:, None].float())
    with scope.edit(Edit("resid_post", layers=1, add=0.0, positions="image")):
        assert torch.equal(scope.read(ONE, "resid_post", layers=1)["resid_post"][0, 0], plain)
    with scope.edit(Edit("attn_scores", add=-torch.inf, positions="text", keys="image")):
        blind = scope.read(ONE, "pattern", layers=0)["pattern"][0, 0]
        assert blind[:, ~seen][:, :, seen].abs().max() == 0


@pytest.mark.parametrize("site", ["resid_post", "v"])
def test_generation_under_an_edit_of_the_picture(scope, site):
    "With a cache as without, token by token."
    with scope.edit(Edit(site, layers=1, scale=-3.0, positions="image")):
        cached = scope.generate(ONE, max_new_tokens=5, return_ids=True)[1]
        ids = []
        given = {k: v for k, v in own(scope, ONE)[0].items()}
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(scope.model(**given).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
            given = longer(given, ids[-1])
        edited = scope.logits(ONE)
    assert cached == ids and (edited - scope.logits(ONE)).abs().max() > 1e-4


def longer(given, token):
    "The same text with one token more."
    new = dict(given)
    new["input_ids"] = torch.cat([given["input_ids"], torch.tensor([[token]])], 1)
    new["attention_mask"] = torch.ones_like(new["input_ids"])
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in given:
            new[name] = torch.cat([given[name], torch.zeros(1, 1, dtype=torch.long)], 1)
    return new


def test_a_batch_is_as_its_rows(scope):
    chats = [ONE, TWO]
    together = scope.read(chats, ["resid_post", "logits"])
    for row, chat in enumerate(chats):
        alone = scope.read(chat, ["resid_post", "logits"])
        real = together.mask[row]
        torch.testing.assert_close(together["logits"][row, real], alone["logits"][0], rtol=1e-3, atol=1e-3)
    both = scope.generate(chats, max_new_tokens=4, return_ids=True)[1]
    assert both == [scope.generate(chat, max_new_tokens=4, return_ids=True)[1] for chat in chats]


def test_scores_of_a_text_with_a_picture(scope):
    strip = scope.surprisal(ONE)
    assert np.isfinite(strip.values[1:]).all() and len(strip.values) == len(scope.encode(ONE).tokens[0])
    received = scope.attention_received(ONE, layers=0).values
    pattern = scope.read(ONE, "pattern", layers=0)["pattern"][0, 0].mean(0)
    sees = (scope.read(ONE, "pattern", layers=0)["pattern"][0, 0] > 0).any(0)
    np.testing.assert_allclose(received[0], (pattern * sees).sum(0) / sees.sum(0), atol=1e-6)


def test_what_does_not_see_is_told_so():
    from architectures import tiny
    blind = Scope(tiny("llama"))
    with pytest.raises(ScopeError, match="reads texts, and a picture was given"):
        blind.encode(ONE)
    with pytest.raises(ScopeError, match="belongs to a vision-language model"):
        blind.read([5, 6], "resid_post", positions="image")
    with pytest.raises(ScopeError, match="belongs to a vision-language model"), blind.edit(Edit("resid_post", add=1.0, positions="image")):
        blind.logits([5, 6])
    model, processor = tiny_seeing("llava")
    with pytest.raises(ScopeError, match="needs the model's processor"):
        Scope(model, processor.tokenizer).encode(ONE)
    scope = Scope(model, processor)
    with pytest.raises(ScopeError, match="No image tokens"):
        scope.read("hello", "resid_post", positions="image")
    with pytest.raises(ScopeError, match="stands for a picture"):
        scope.encode(asked(picture(9, 9), text="what is <image>?"))
    with pytest.raises(ScopeError, match="A picture is missing"):
        scope.encode([{"role": "user", "content": [{"type": "image"}]}])
    assert scope.encode([ONE, NONE]).is_image.any(1).tolist() == [True, False]


def saved(image, form, **more):
    "A picture as a file that was opened again."
    import io
    file = io.BytesIO()
    image.save(file, form, **more)
    file.seek(0)
    return file


def colour(image):
    return as_picture(image).getpixel((0, 0))


def test_every_kind_of_picture_becomes_the_same():
    red = Image.new("RGB", (6, 4), (200, 0, 0))
    assert as_picture(red).mode == "RGB" and colour(red) == (200, 0, 0)
    assert colour(Image.new("RGBA", (6, 4), (0, 0, 0, 0))) == (255, 255, 255)
    assert colour(Image.new("LA", (6, 4), (0, 255))) == (0, 0, 0)
    assert colour(Image.new("L", (6, 4), 77)) == (77,) * 3 and colour(Image.new("1", (6, 4), 1)) == (255,) * 3
    assert colour(Image.new("CMYK", (6, 4), (0, 255, 255, 0))) == (255, 0, 0)
    assert colour(Image.open(saved(Image.fromarray(np.full((4, 6), 2**15, np.uint16)), "png"))) == (128,) * 3
    assert colour(np.full((4, 6, 3), 0.5)) == (128,) * 3 and colour(torch.full((3, 4, 6), 9, dtype=torch.uint8)) == (9,) * 3
    see_through = red.quantize(4)
    see_through.info["transparency"] = 0
    assert as_picture(Image.open(saved(see_through, "png", transparency=0))).mode == "RGB"
    assert as_picture(np.zeros((4, 6, 4), np.uint8)).getpixel((0, 0)) == (255,) * 3  # an array may have an alpha channel too


def test_a_picture_stands_upright():
    high = Image.new("RGB", (4, 8))
    turned = Image.Exif()
    turned[0x0112] = 6  # turn it by a quarter
    assert as_picture(Image.open(saved(high, "jpeg", exif=turned))).size == (8, 4)


def test_pictures_that_cannot_be_taken_are_refused(tmp_path):
    noise = Image.effect_noise((64, 64), 60)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(saved(noise, "jpeg").getvalue()[:700])
    film = [noise, Image.effect_noise((64, 64), 20)]
    (tmp_path / "words.png").write_text("no picture")
    for given, words in (
        (cut, "The picture cannot be read"),
        (Image.open(saved(noise, "gif", save_all=True, append_images=film[1:])), "An animation of 2 pictures"),
        (Image.new("1", (10_000, 10_000)), "Too large a picture: 10000 x 10000"),
        (tmp_path / "words.png", "Not a picture file"),
        (tmp_path / "none.png", "Not a picture file"),
        ("https://example.org/a.png", "not fetched from an address"),
        (np.full((4, 4), 300), "Not a picture: an array of int64"),
        (np.full((4, 4), np.nan), "Not a picture: an array of float64"),
        (np.zeros((0, 4)), "Not a picture"), (np.zeros(4), "Not a picture"), (3, "Not a picture"), (None, "Not a picture"),
    ):
        with pytest.raises(ScopeError, match=words):
            as_picture(given)


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1)])
def test_pictures_a_pixel_wide(scope, size):
    "Read, or refused in the processor's words."
    try:
        assert scope.logits(asked(picture(*size))).isfinite().all()
    except ScopeError as error:
        assert "The processor does not take these pictures" in str(error)


def test_the_processor_of_another_model():
    model, _ = tiny_seeing("llava")
    _, processor = tiny_seeing("qwen2_5_vl")
    with pytest.raises(ScopeError):
        Scope(model, processor).logits(ONE)
