"""Drives llama.cpp for `sateen bench peers`: a JSON request per line in, a JSON answer per line out.

usage: llama_cpp_peer.py MODEL.gguf N_THREADS   (needs the package llama-cpp-python)
"""
import json, sys, time

import llama_cpp

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


print(json.dumps({"version": llama_cpp.__version__}), flush=True)
operations = {"passes": passes, "prefill": prefill}
for line in sys.stdin:
    request = json.loads(line)
    try:
        answer = operations[request["operation"]](request)
    except Exception as error:  # The other side decides what to do about it.
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
