"""Models as users bring them: small ones of many families with random weights, and a hub that serves them."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VOCABULARY, END, TURN = 400, 1, 2  # tokens of a model, and two of them
CHAT = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}END\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def families():
    """For each family a function that makes a model of it, without weights that were learnt."""
    import transformers as t

    ids = {"vocab_size": VOCABULARY, "bos_token_id": None, "pad_token_id": 0, "eos_token_id": END}
    usual = {**ids, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {**usual, "num_key_value_heads": 2, "max_position_embeddings": 8192}
    small = {**ids, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 8192}
    return {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**grouped)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**grouped, sliding_window=None)),
        "mistral with a window": lambda: t.MistralForCausalLM(t.MistralConfig(**grouped, sliding_window=64)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**grouped)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**grouped, head_dim=16)),
        "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**grouped, head_dim=8)),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**grouped, head_dim=8, sliding_window=64)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**small)),
        "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**usual, max_position_embeddings=8192)),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**grouped)),
        # These cannot be used, each for a reason of its own.
        "phi": lambda: _with_bias(t.PhiForCausalLM(t.PhiConfig(**grouped))),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**grouped, head_dim=8)),
        "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(**ids, hidden_size=32, num_hidden_layers=2)),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        ),
    }


def _with_bias(model):
    model.lm_head.bias.data.fill_(0.5)
    return model


def write_model(place, family="qwen2", chat_template=None):
    """Writes a model and its byte-level tokenizer into a folder; returns the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    from etpo_paper.environment.prompts import task_prompt
    from etpo_paper.model.loading import CODE

    with torch.random.fork_rng():
        torch.manual_seed(0)
        families()[family]().save_pretrained(place)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    special, alphabet = ["<pad>", "<end>", "<turn>"], sorted(byte_level.alphabet())
    trainer = BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CODE, "):\n\n\ndef main():\n" * 9, *[task_prompt("Toy", 3, 20).prefix] * 3], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = chat_template
    fast.save_pretrained(place)
    return place


@contextmanager
def hub(models):
    """A server that speaks as much of the hub's protocol as fetching a model needs.

    Args:
        models: the folder of each model by its name on the hub. A folder of None is one that asks for a licence.

    Yields:
        Its address, and the requests that it got.
    """
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(True)

        def do_HEAD(self):
            self._answer(False)

        def log_message(self, *_):
            pass

        def _send(self, status, body, headers, whole):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if whole:
                self.wfile.write(body)

        def _answer(self, whole):
            requests.append(self.path)
            path = self.path.partition("?")[0].removeprefix("/api/models").strip("/").split("/")
            name, rest = "/".join(path[:2]), path[2:]
            if name not in models:
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, whole)
            place = models[name]
            if place is None:
                return self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, whole)
            files = {file.name: file.read_bytes() for file in sorted(place.iterdir())}
            commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
            if rest[:1] == ["resolve"]:
                content = files[rest[2]]
                etag = hashlib.sha1(content).hexdigest()
                return self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, whole)
            tree = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
            told = tree if rest[:1] == ["tree"] else {"id": name, "sha": commit, "siblings": []}
            return self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"}, whole)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
