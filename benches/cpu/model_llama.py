#!/usr/bin/env python3
"""llama.cpp on a dense model with as many weights as ours: writes the model, and measures it in a process of its own.

The architecture is `arcee`: Llama's attention and norms, and a feed-forward of two matrices, with ReLU squared between
them. The head is tied to the embedding, and every matrix has the type of the file.
"""

import argparse
import ctypes
import os
import struct
import sys
import time
from pathlib import Path

import numpy as np

from model_sizes import SIZES
from model_worker import answer, arguments, contexts, decoding, prompting, resident, tokens

ARCHITECTURE = "arcee"
TYPES = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
EPSILON = 1e-6
# What `generate`'s prompt has.
FIRST_TOKENS = 4


def add_vocabulary(gguf, writer, count):
    """As many made-up words as the model has tokens: llama.cpp's server writes its answers with them."""
    kinds = gguf.TokenType
    special = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    # No byte of a character that takes several: each token is a text of its own.
    bytes_ = [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(128)]
    words = [(f"\u2581{index}", kinds.NORMAL) for index in range(len(special) + len(bytes_), count)]
    texts, kinds = zip(*(special + bytes_ + words)[:count])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * count)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def write(size, bits, path):
    """Writes a gguf file with random weights; matrices of one shape hold the same."""
    import gguf
    from gguf.quants import quantize

    kind = gguf.GGMLQuantizationType[TYPES[bits]]
    rng, made = np.random.default_rng(0), {}

    def matrix(outputs, inputs):
        if (outputs, inputs) not in made:
            values = rng.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(inputs**-0.5)
            made[outputs, inputs] = quantize(values, kind)
        return made[outputs, inputs]

    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, ARCHITECTURE)
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(size.d_model)
    writer.add_block_count(size.num_layers)
    writer.add_feed_forward_length(size.dense_ffn)
    writer.add_head_count(size.heads)
    writer.add_head_count_kv(size.heads)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(size.vocab_size)
    add_vocabulary(gguf, writer, size.vocab_size)
    norm, d = np.ones(size.d_model, np.float32), size.d_model
    writer.add_tensor("token_embd.weight", matrix(size.vocab_size, d), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", norm)
    for layer in range(size.num_layers):
        for name, outputs, inputs in [
            ("attn_q", d, d), ("attn_k", d, d), ("attn_v", d, d), ("attn_output", d, d),
            ("ffn_up", size.dense_ffn, d), ("ffn_down", d, size.dense_ffn),
        ]:  # fmt: skip
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(outputs, inputs), raw_dtype=kind)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, path)


class Llama:
    """A loaded model."""

    def __init__(self, path, threads):
        from llama_cpp import llama_cpp as api

        self.api, self.threads, self.context = api, threads, None
        # Its log goes to standard error, a line a tensor.
        self.silence = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self.silence, None)
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not self.model:
            raise OSError(f"{path}: llama.cpp does not load it")

    def open(self, length):
        """A cache of `length` tokens, in place of the one before."""
        if self.context:
            self.api.llama_free(self.context)
        options = self.api.llama_context_default_params()
        options.n_ctx = length
        options.n_threads = options.n_threads_batch = self.threads
        self.context = self.api.llama_init_from_model(self.model, options)
        if not self.context:
            raise OSError(f"llama.cpp makes no context of {length} tokens")

    def run(self, ids):
        """Tokens after those that the cache holds; the logits of the last."""
        ids = (ctypes.c_int32 * len(ids))(*ids)
        code = self.api.llama_decode(self.context, self.api.llama_batch_get_one(ids, len(ids)))
        if code != 0:
            raise OSError(f"llama_decode: {code}")
        return self.api.llama_get_logits_ith(self.context, -1)

    def keep(self, length):
        """Forgets what comes after the first `length` tokens."""
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, length, -1)

    def state(self):
        bytes_ = self.api.llama_state_seq_get_size(self.context, 0)
        data = np.empty(bytes_, np.uint8)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = self.api.llama_state_seq_get_data(self.context, pointer, bytes_, 0)
        return data[:written]

    def fill(self, size, length):
        """A cache of `length` tokens without running them: the rows of two tokens over and over."""
        self.keep(0)
        self.run(tokens(size, 2))
        short = self.state()
        rows = 2 * size.num_layers
        # Beginning, rows of keys and values by layer: as llama.cpp writes the state of a sequence.
        row = 2 * size.d_model
        body = rows * (12 + 2 * row)
        cells = 4 + 2 * 12 + 8
        begin = short[: len(short) - body - cells].tobytes()
        kinds = short[-body:].reshape(rows, 12 + 2 * row)
        head = lambda count: struct.pack("<I", count) + b"".join(  # noqa: E731
            struct.pack("<iIi", at, 1, 0) for at in range(count)
        ) + struct.pack("<II", 0, size.num_layers)

        def whole(count):
            first = begin + head(count)
            data = np.empty(len(first) + rows * (12 + count * row), np.uint8)
            data[: len(first)] = np.frombuffer(first, np.uint8)
            for part, kind in zip(data[len(first) :].reshape(rows, -1), kinds):
                part[:12] = kind[:12]
                part[12:].reshape(-1, 2 * row)[:] = kind[12:]
            return data

        if not np.array_equal(whole(2), short):
            raise OSError("llama.cpp writes a sequence's state in another form than model_llama.py knows")
        long = whole(length)
        pointer = long.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if self.api.llama_state_seq_set_data(self.context, pointer, len(long), 0) != len(long):
            raise OSError(f"llama.cpp does not take a state of {length} tokens")

    def decode(self, size, context):
        """Tokens a second after the `context` tokens that the cache holds."""

        def step(position, token):
            if position == context:
                self.keep(context)
            self.run([token])

        return decoding(size, context, step)


def measure(size, path, threads, wanted):
    """Rates, and memory at most with a cache for the prompt and the new tokens."""
    before = resident("VmRSS")
    model = Llama(path, threads)
    model.open(size.prompt + size.new_tokens)

    def prompt(ids):
        model.keep(0)
        model.run(ids)

    found = {"prompt": prompting(size, prompt), "decode": {}}
    for context in wanted:
        if context == size.prompt:
            found["decode"][context] = model.decode(size, context)
            found["resident_bytes"] = resident("VmHWM") - before
            # Keys and values in f16, as many rows as the cache has.
            found["state_bytes"] = 4 * size.d_model * size.num_layers * model.api.llama_n_ctx(model.context)
    for context in wanted:
        if context != size.prompt:
            model.open(context + size.new_tokens)
            model.fill(size, context)
            found["decode"][context] = model.decode(size, context)
    return found


def first_token(size, path, threads):
    """Seconds from before the model is opened to the logits of a short prompt."""
    import llama_cpp.llama_cpp  # noqa: F401 - a program would be linked with it

    begin = time.perf_counter()
    model = Llama(path, threads)
    model.open(size.prompt)
    np.ctypeslib.as_array(model.run(tokens(size, FIRST_TOKENS)), (size.vocab_size,)).argmax()
    return {"first_token": time.perf_counter() - begin}


def main(words):
    parser = arguments(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    parser.add_argument("--model", type=Path, required=True, help="the gguf file")
    parser.add_argument("--first-token", action="store_true", help="measure the way to the first token alone")
    options = parser.parse_args(words)
    size = SIZES[options.size]
    if options.first_token:
        answer(first_token(size, options.model, options.threads))
    else:
        answer(measure(size, options.model, options.threads, contexts(options)))


if __name__ == "__main__":
    main(sys.argv[1:])
