"""Drives llama.cpp for `sateen bench peers`: a JSON request per line in, a JSON answer per line out.

usage: llama_cpp_peer.py MODEL.gguf N_THREADS   (needs the package llama-cpp-python)
"""
import json, sys, time

import llama_cpp
import numpy
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

path, n_threads = sys.argv[1], int(sys.argv[2])
N_CONTEXT = 2560
settings = dict(model_path=path, n_ctx=N_CONTEXT, n_batch=2048, n_ubatch=512, n_threads=n_threads,
                n_threads_batch=n_threads, verbose=False)
llama = llama_cpp.Llama(logits_all=True, **settings)
context = llama.ctx
batch = llama_cpp.llama_batch_init(2048, 0, 1)


def forget(first):
    if hasattr(llama_cpp, "llama_memory_seq_rm"):
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), 0, first, -1)
    else:
        llama_cpp.llama_kv_self_seq_rm(context, 0, first, -1)


def run(tokens, first, all_logits):
    """Milliseconds of one decode call over `tokens` from position `first` on."""
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i] = token
        batch.pos[i] = first + i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = all_logits or i == len(tokens) - 1
    started = time.perf_counter()
    if llama_cpp.llama_decode(context, batch) != 0:
        raise RuntimeError("llama_decode failed")
    # The logits are read, as a decoder would.
    llama_cpp.llama_get_logits_ith(context, len(tokens) - 1)
    return (time.perf_counter() - started) * 1000


def passes(request):
    """One pass of `n_rows` rows behind `n_committed` committed ones, logits of every row."""
    n_committed = request["n_committed"]
    forget(0)
    run(request["tokens"][:n_committed], 0, False)
    times = []
    for _ in range(request["repetitions"]):
        times.append(run(request["tokens"][: request["n_rows"]], n_committed, True))
        forget(n_committed)
    return {"ms": times}


def prefill(request):
    forget(0)
    return {"ms": [run(request["tokens"], 0, False)]}


def likeliest(row):
    logits = llama_cpp.llama_get_logits_ith(context, row)
    return int(numpy.ctypeslib.as_array(logits, (llama.n_vocab(),)).argmax())


def decode(request):
    """Greedy decoding with the package's prompt lookup, without what its own loop spends in Python."""
    tokens = llama.tokenize(request["prompt"].encode(), special=False)
    draft = LlamaPromptLookupDecoding(num_pred_tokens=request["n_drafts"]) if request["n_drafts"] else None
    forget(0)
    run(tokens, 0, False)
    n_prompt = len(tokens)
    tokens.append(likeliest(len(tokens) - 1))
    started, n_before = time.perf_counter(), len(tokens)
    while len(tokens) - n_prompt < request["max_tokens"] and tokens[-1] != llama.token_eos():
        drafts = [int(token) for token in draft(numpy.array(tokens))] if draft else []
        first = len(tokens) - 1
        run(tokens[-1:] + drafts, first, True)
        for row in range(len(drafts) + 1):
            tokens.append(likeliest(row))
            if row == len(drafts) or tokens[-1] != drafts[row] or tokens[-1] == llama.token_eos():
                break
        forget(len(tokens) - 1)
    ms = (time.perf_counter() - started) * 1000
    return {"ms": [ms], "n_tokens": len(tokens) - n_before}


def continuation(request):
    """Greedy tokens behind a prompt of tokens, up to the end of the text."""
    tokens = request["tokens"]
    forget(0)
    started, found = time.perf_counter(), []
    run(tokens, 0, False)
    row = len(tokens) - 1
    while len(found) < request["max_tokens"]:
        token = likeliest(row)
        if llama_cpp.llama_vocab_is_eog(vocabulary, token):
            break
        found.append(token)
        run([token], len(tokens) + len(found) - 1, False)
        row = 0
    return {"ms": [(time.perf_counter() - started) * 1000], "tokens": found}


vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
print(json.dumps({"version": llama_cpp.__version__}), flush=True)
operations = {"passes": passes, "prefill": prefill, "decode": decode, "continuation": continuation}
for line in sys.stdin:
    request = json.loads(line)
    try:
        answer = operations[request["operation"]](request)
    except Exception as error:  # The other side decides what to do about it.
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
