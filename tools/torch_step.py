"""The step of `sateen train sat` in PyTorch, for the time that it takes: what it computes is the same, what it learns nobody keeps.

usage: torch_step.py MODEL.gguf [--tokens 256] [--anchors 64] [--slots 4] [--rank 16] [--outputs 32768] [--steps 5] [--threads 2]
needs: numpy, gguf, torch

A qwen2 or llama model as its file has it, in f32. Token rows run without gradients, rows of adaptive tokens with them;
scores of what a row does not see are masked. Tokens are random: what a step takes does not depend on them. The first step is not counted.
"""
import argparse, time
import gguf, numpy as np, torch
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("model")
for name, default in dict(tokens=256, anchors=64, slots=4, rank=16, outputs=32768, steps=5, threads=2).items():
    parser.add_argument(f"--{name}", type=int, default=default)
args = parser.parse_args()
torch.set_num_threads(args.threads)
torch.manual_seed(0)

reader = gguf.GGUFReader(args.model)
weights = {t.name: torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32)) for t in reader.tensors}
number = lambda key: float(reader.fields[key].parts[-1][0])
arch = bytes(reader.fields["general.architecture"].parts[-1]).decode()
n_layers, n_heads, n_kv = (int(number(f"{arch}.{k}")) for k in ("block_count", "attention.head_count", "attention.head_count_kv"))
epsilon, theta, hidden = number(f"{arch}.attention.layer_norm_rms_epsilon"), number(f"{arch}.rope.freq_base"), int(number(f"{arch}.embedding_length"))
head_dim = hidden // n_heads
output = weights.get("output.weight", weights["token_embd.weight"])[: args.outputs]

names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
embedding = weights["token_embd.weight"].mean(0, keepdim=True).repeat(args.slots, 1).requires_grad_()
deltas = []
for layer in range(n_layers):
    of_layer = {}
    for name in names:
        n_out, n_in = weights[f"blk.{layer}.{name}.weight"].shape
        a = ((2 * torch.rand(n_in, args.rank) - 1) * (3 / n_in) ** 0.5).requires_grad_()
        of_layer[name] = (a, torch.zeros(args.rank, n_out).requires_grad_())
    deltas.append(of_layer)
variables = [embedding] + [v for of_layer in deltas for pair in of_layer.values() for v in pair]
optimizer = torch.optim.AdamW(variables, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)


def norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


def rope(x, positions):
    angle = positions[:, None] / theta ** (torch.arange(0, head_dim, 2) / head_dim)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    if arch == "qwen2":
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def layers(x, positions, mask, cache, is_draft):
    """Rows `x` behind `cache`, the keys and values of each layer so far; with deltas for a draft."""
    def linear(x, layer, name):
        y = F.linear(x, weights[f"blk.{layer}.{name}.weight"], weights.get(f"blk.{layer}.{name}.bias"))
        if is_draft:
            a, b = deltas[layer][name]
            y = y + x @ a @ b
        return y

    kept = []
    for i in range(n_layers):
        h = norm(x, weights[f"blk.{i}.attn_norm.weight"])
        q = rope(linear(h, i, "attn_q").view(-1, n_heads, head_dim), positions).transpose(0, 1)
        k = rope(linear(h, i, "attn_k").view(-1, n_kv, head_dim), positions).transpose(0, 1)
        v = linear(h, i, "attn_v").view(-1, n_kv, head_dim).transpose(0, 1)
        if cache:
            k, v = torch.cat([cache[i][0], k], 1), torch.cat([cache[i][1], v], 1)
        kept.append((k, v))
        attended = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, enable_gqa=True)[0]
        x = x + linear(attended.transpose(0, 1).reshape(-1, hidden), i, "attn_output")
        h = norm(x, weights[f"blk.{i}.ffn_norm.weight"])
        x = x + linear(F.silu(linear(h, i, "ffn_gate")) * linear(h, i, "ffn_up"), i, "ffn_down")
    return norm(x, weights["output_norm.weight"]), kept


def step():
    n, k = args.tokens, args.slots
    tokens = torch.randint(0, args.outputs, (n,))
    anchors = torch.randperm(n - k - 1)[: args.anchors].sort().values
    slots = torch.arange(k).repeat(len(anchors))
    of_rows = anchors.repeat_interleave(k)
    positions, labels = of_rows + 1 + slots, tokens[of_rows + 2 + slots]
    with torch.no_grad():
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        normed, cache = layers(weights["token_embd.weight"][tokens], torch.arange(n), causal, None, False)
        log_p = F.log_softmax(normed[positions] @ output.T, -1)
    sees_tokens = torch.arange(n)[None] <= of_rows[:, None]
    sees_group = (of_rows[:, None] == of_rows[None]) & (slots[None] <= slots[:, None])
    mask = torch.cat([sees_tokens, sees_group], 1)
    rows, _ = layers(embedding[slots], positions, mask, cache, True)
    log_q = F.log_softmax(rows @ output.T, -1)
    weight = 0.85 ** slots
    loss = 0.9 * (F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1) * weight).sum()
    loss = (loss - 0.1 * (log_q.gather(1, labels[:, None])[:, 0] * weight).sum()) / weight.sum()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(variables, 1.0)
    optimizer.step()
    return len(slots), loss.item()


step()
started, n_rows = time.time(), 0
for _ in range(args.steps):
    n, loss = step()
    n_rows += n
seconds = time.time() - started
print(f"torch {torch.__version__}, {args.threads} threads: {n_rows} rows in {seconds:.1f} s, {n_rows / seconds:.1f} rows/s")
