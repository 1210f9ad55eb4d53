"""A tiny random Llama with a byte-level tokenizer and a chat template: `python
tests/tiny_llama.py FOLDER [SEED]` saves one.
"""

import sys
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor"
    " %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def save_llama(folder: Path, seed: int = 0, longest: int = 2048) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o")]
    vocabulary = {
        token: place
        for place, token in enumerate([*SPECIAL, *letters, *("".join(pair) for pair in merges)])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=SPECIAL[1:],
        chat_template=TEMPLATE,
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=longest,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_judge(folder: Path, chats: list[list[dict[str, str]]]) -> Path:
    """Let a saved tiny Llama answer chats with Yes or No and end there, now the one, now the
    other, more and less sure.

    Its output layer alone is set, by the last states h of the chats as they are asked, and as they
    are answered with either word: least squares give a (1 where the answer is open, 0 where it is
    given) and b (the other way round); the logits of Yes and No are 30 a h +- c (w h - mean), where
    w is the direction in which the open states differ most, and that of the end is 30 b h.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    end, yes, no = tokenizer.convert_tokens_to_ids(["<|end|>", "Yes", "No"])
    asked = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        for chat in chats
    ]
    prompts = [one["input_ids"] + said for said in ([], [yes], [no]) for one in asked]
    with torch.no_grad():
        states = torch.stack(
            [model.model(torch.tensor([one])).last_hidden_state[0, -1] for one in prompts]
        )
        still_open = (torch.arange(len(prompts)) < len(chats)).float()
        goals = torch.stack([still_open, 1 - still_open], 1)
        a, b = torch.linalg.lstsq(states, goals).solution.T
        mean = states[: len(chats)].mean(0)
        direction = torch.linalg.svd(states[: len(chats)] - mean).Vh[0]
        lean = direction - (direction @ mean) * a
        lean *= 1.5 / (states[: len(chats)] @ lean).std()
        head = model.lm_head.weight
        head[yes], head[no], head[end] = 30 * a + lean, 30 * a - lean, 30 * b
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(save_llama(Path(sys.argv[1]), *map(int, sys.argv[2:])))
