"Tiny random vision-language models of many families with their processors, made without a download."
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

MARKS = ["<pad>", "<s>", "</s>", "<image>", "<begin_image>", "<end_image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
         "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *[f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCAB = len(LETTERS) + len(MARKS)
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}MARK{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXT = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2, head_dim=8)
VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)


def letters(**special):
    "A tokenizer of single bytes, with the marks of all families."
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate([*MARKS, *LETTERS])}, [], unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(MARKS)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **special)


def llava():
    "One square of patches a picture; a class token that is left out."
    from transformers import CLIPImageProcessorPil, LlavaProcessor
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(pictures, letters(), patch_size=4, num_additional_image_tokens=1, vision_feature_select_strategy="default", chat_template=TEMPLATE.replace("MARK", "<image>"))
    return dict(vision_config=dict(model_type="clip_vision_model", **VISION), text_config=dict(model_type="llama", **TEXT), image_token_index=3), processor


def llava_next():
    "The whole picture, then its parts, with a token behind each row."
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor
    pictures = LlavaNextImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]])
    processor = LlavaNextProcessor(pictures, letters(), patch_size=4, num_additional_image_tokens=1, vision_feature_select_strategy="default", chat_template=TEMPLATE.replace("MARK", "<image>"))
    return dict(vision_config=dict(model_type="clip_vision_model", **VISION), text_config=dict(model_type="llama", **TEXT), image_token_index=3, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]]), processor


def idefics3():
    "Tiles, each between marks of its own, then the whole picture."
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(pictures, letters(), image_seq_len=4, chat_template=TEMPLATE.replace("MARK", "<image>"))
    return dict(vision_config=dict(model_type="idefics3_vision", **VISION), text_config=dict(model_type="llama", **TEXT), image_token_id=3, scale_factor=2, pad_token_id=0), processor


def qwen2_5_vl():
    "As many patches as the picture has; four of them are one token."
    from transformers import Qwen2VLImageProcessorPil, Qwen2_5_VLProcessor
    class PicturesOnly(Qwen2_5_VLProcessor):  # its films need torchvision

        def __init__(self, image_processor, tokenizer, chat_template):
            self.image_token, self.image_token_id = "<|image_pad|>", MARKS.index("<|image_pad|>")
            self.video_token, self.video_token_id = "<|video_pad|>", MARKS.index("<|video_pad|>")
            super(Qwen2_5_VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)

    pictures = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=1024)
    processor = PicturesOnly(pictures, letters(), chat_template=TEMPLATE.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>"))
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, out_hidden_size=32, fullatt_block_indexes=[0], window_size=16)
    text = dict(TEXT, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]})
    marks = dict(image_token_id=MARKS.index("<|image_pad|>"), video_token_id=MARKS.index("<|video_pad|>"), vision_start_token_id=MARKS.index("<|vision_start|>"), vision_end_token_id=MARKS.index("<|vision_end|>"))
    return dict(vision_config=vision, text_config=text, **marks), processor


def gemma3():
    "A square of pooled patches between two marks; its tokens see one another."
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor
    pictures = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    named = letters(extra_special_tokens={"image_token": "<image>", "boi_token": "<begin_image>", "eoi_token": "<end_image>"})
    processor = Gemma3Processor(pictures, named, image_seq_length=4, chat_template=TEMPLATE.replace("MARK", "<begin_image>"))
    return dict(vision_config=dict(model_type="siglip_vision_model", **VISION), text_config=dict(TEXT, sliding_window=8), mm_tokens_per_image=4, image_token_index=3, boi_token_index=4, eoi_token_index=5), processor


def paligemma():
    "The pictures come first, and all of the prompt sees all of it."
    from transformers import PaliGemmaProcessor, SiglipImageProcessorPil
    pictures = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    pictures.image_seq_length = 16
    processor = PaliGemmaProcessor(pictures, letters(extra_special_tokens={"image_token": "<image>"}), chat_template=TEMPLATE.replace("MARK", "<image>"))
    return dict(vision_config=dict(model_type="siglip_vision_model", projection_dim=32, **VISION), text_config=dict(model_type="gemma", **TEXT), image_token_index=3, projection_dim=32), processor


FAMILIES = {f.__name__: f for f in (llava, llava_next, idefics3, qwen2_5_vl, gemma3, paligemma)}


def tiny_seeing(family):
    "A small random model of one family and its processor, always the same."
    torch.manual_seed(0)
    settings, processor = FAMILIES[family]()
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.mul_(3)
    return model.eval(), processor
