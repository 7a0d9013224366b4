"The default model with eyes: the right class on shared weights, texts as ever, pictures answered, what does not fit refused."
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tokenscope import Scope, load
from tokenscope.core.emoji_vlm import EMOJI_VLM, EYES, emoji_vlm, read_eyes, with_eyes
from tokenscope.data.emoji_scenes import emoji_scene, scene_questions
from tokenscope.learn.eyes import CAPTION, eye_scenes, nearest_things, sight_accuracy, sight_hits
from tokenscope.text.names import ScopeError

TEXTS = ["The capital of France is Paris.", "Hello"]


@pytest.fixture(scope="module")
def default():
    return load()


@pytest.fixture(scope="module")
def scope():
    return load(EMOJI_VLM)


def asked(*pictures, text=CAPTION):
    return [{"role": "user", "content": [*({"type": "image", "image": p} for p in pictures), text]}]


def test_the_true_classes(scope):
    assert type(scope.model) is LlavaForConditionalGeneration and type(scope.processor) is LlavaProcessor
    assert scope.name == "emoji-vlm" and not scope.model.training
    assert not any(p.requires_grad for p in scope.model.parameters())


def test_texts_are_read_as_ever(scope, default):
    for text in (TEXTS, TEXTS[0], [{"role": "user", "content": "Hello"}]):
        assert torch.equal(scope.encode(text).input_ids, default.encode(text).input_ids)
        assert torch.equal(scope.logits(text), default.logits(text))
    assert scope.generate(TEXTS[0], max_new_tokens=8) == default.generate(TEXTS[0], max_new_tokens=8)


def test_weights_are_shared(default):
    _, eyes = read_eyes(EYES)
    eyes.pop("anchor")
    model = with_eyes(default.model, default.tokenizer, eyes)
    theirs = dict(default.model.model.named_parameters())
    for name, weight in model.model.language_model.named_parameters():
        assert weight.data_ptr() == theirs[name].data_ptr(), name


def test_picture_tokens_are_known(scope):
    scene = emoji_scene(2, seed=5)
    (tokens,) = scope.encode(asked(scene.picture)).tokens
    patches = [p for p in tokens.patches if p]
    assert [(p.row, p.column) for p in patches] == [(i, j) for i in range(8) for j in range(8)]
    assert patches[9].box == (0.125, 0.125, 0.25, 0.25)
    assert scope.encode(asked(scene.picture)).is_image.sum() == 64


def test_the_models_own_numbers(scope):
    chat = asked(emoji_scene(2, seed=5).picture)
    parts = [{"role": "user", "content": [chat[0]["content"][0], {"type": "text", "text": CAPTION}]}]
    given = scope.processor.apply_chat_template(parts, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    with torch.no_grad():
        right = scope.model(**given).logits
    torch.testing.assert_close(scope.logits(chat), right, rtol=1e-4, atol=1e-4)


def test_a_few_scenes_are_named():
    scope = load(EMOJI_VLM)
    scenes = eye_scenes(6, "held out", first=2_000_000, n_things=(1, 2, 3))
    seen = sight_accuracy(scope, scenes)
    blind = sight_accuracy(scope, scenes, hide=True)
    # the page measures 45 to 58 % on many scenes; a few can only tell that it is not blind
    assert seen.low["named"] > blind.high["named"]


def test_batches_and_places_in_them(scope):
    scenes = eye_scenes(3, first=3_000_000)
    chats = [asked(scene.picture) for scene in scenes] + [[{"role": "user", "content": "Hello"}]]
    together = scope.generate(chats, max_new_tokens=12)
    assert together == [scope.generate(chat, max_new_tokens=12) for chat in chats]


def test_the_nearest_words_lie_where_the_things_are(scope):
    hits = total = 0
    for scene in eye_scenes(6, first=4_000_000):
        nearest, near = nearest_things(scope, scene)
        assert near.shape[1] == 104
        for word, (left, top, right, bottom) in scene.things:
            x, y = (left + right) // 28, (top + bottom) // 28
            hits += nearest[min(y, 7)][min(x, 7)] == word
            total += 1
    assert hits / total > 0.6, (hits, total)  # chance is 1 in 104


def test_pictures_of_other_sizes_and_kinds(scope):
    big = emoji_scene(1, seed=9, words=["dog"], kind="plain", size=224).picture
    for picture in (big, big.convert("RGBA"), np.asarray(big)):
        assert "dog" in scope.generate(asked(picture), max_new_tokens=8)
    grey = Image.fromarray(np.full((30, 50), 128, np.uint8))
    assert scope.encode(asked(grey, grey)).is_image.sum() == 128


@pytest.mark.parametrize("dtype", ("bfloat16", "float16", "auto"))
def test_half_numbers(dtype):
    scope = load(EMOJI_VLM, dtype=dtype)
    assert scope.dtype in (torch.bfloat16, torch.float16)
    assert scope.model.model.vision_tower.dtype == scope.dtype
    assert scope.logits(asked(emoji_scene(1, seed=2).picture)).isfinite().all()


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch, default):
    broken = tmp_path / "eyes.safetensors"
    broken.write_bytes(EYES.read_bytes()[:-100])
    with pytest.raises(ScopeError, match="The eyes cannot be read"):
        emoji_vlm({}, broken)
    broken.write_bytes((EYES.parent / "binding_toy.safetensors").read_bytes())
    with pytest.raises(ScopeError, match="The eyes cannot be read"):
        emoji_vlm({}, broken)
    with pytest.raises(ScopeError, match="The eyes are missing"):
        emoji_vlm({}, tmp_path / "none.safetensors")
    with pytest.raises(ScopeError, match="does not load"):
        load(EMOJI_VLM, colour="green")
    with pytest.raises(ScopeError, match="No such setting of load"):
        load(EMOJI_VLM, revision="main")
    shuffled = {k: v.clone() for k, v in default.model.state_dict().items()}
    weight = shuffled["model.embed_tokens.weight"]
    shuffled["model.embed_tokens.weight"] = shuffled["lm_head.weight"] = weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))]
    default.model.save_pretrained(tmp_path / "other", state_dict=shuffled)
    default.tokenizer.save_pretrained(tmp_path / "other")
    monkeypatch.setenv("TOKENSCOPE_DEFAULT", str(tmp_path / "other"))
    with pytest.raises(ScopeError, match="The eyes fit another model"):
        load(EMOJI_VLM)
    assert isinstance(load(), Scope)


def test_no_two_answers_at_once(scope, monkeypatch):
    scene = emoji_scene(2, seed=8)
    question = scene_questions(scene)[0]
    assert question.kind == "how many"

    def generate(chats, max_new_tokens):
        "All numbers, and all things."
        return ["one two three four " + " ".join(scene.words)] * len(chats)

    talker = Scope(scope.model, scope.processor)
    monkeypatch.setattr(talker, "generate", generate)
    hits = sight_hits(talker, [scene])
    assert all(right for kind, right, _ in hits if kind == "named")
    assert not any(right for kind, right, _ in hits if kind in ("how many", "left of"))
