"""Makes models/tiny-random-llama.gguf and spm.golden.json: a llama with random weights, and what
SentencePiece itself says about awkward strings.

usage, from the root of the repository: python3 crates/model/tests/data/make_tiny_model.py
needs: gguf, numpy, sentencepiece
"""
import glob, io, json
import gguf, numpy as np, sentencepiece as spm

HIDDEN, HEADS, KV_HEADS, LAYERS, FEED_FORWARD, VOCABULARY = 64, 4, 2, 2, 128, 700
INFILLING = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]

sentences = []
for path in sorted(glob.glob("crates/*/src/**/*.rs", recursive=True)):
    sentences += [line for line in open(path, encoding="utf8").read().splitlines() if line]
sentences += ["naïve café — 中文 程序", "def f(x):", "    return x + 1", "for i in range(10):", "        pass"] * 20
model = io.BytesIO()
spm.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences), model_writer=model, model_type="bpe", vocab_size=VOCABULARY,
    byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
    control_symbols=INFILLING, allow_whitespace_only_pieces=True, split_digits=True, character_coverage=0.999,
    unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2)
tokenizer = spm.SentencePieceProcessor(model_proto=model.getvalue())

writer = gguf.GGUFWriter("models/tiny-random-llama.gguf", "llama")
writer.add_name("Tiny random llama")
writer.add_context_length(512)
writer.add_embedding_length(HIDDEN)
writer.add_block_count(LAYERS)
writer.add_feed_forward_length(FEED_FORWARD)
writer.add_head_count(HEADS)
writer.add_head_count_kv(KV_HEADS)
writer.add_rope_dimension_count(HIDDEN // HEADS)
writer.add_rope_freq_base(10000.0)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_tokenizer_model("llama")
kinds = {"unknown": 2, "control": 3, "unused": 5, "byte": 6, "normal": 1}
ids = range(tokenizer.get_piece_size())
def kind(i):
    if tokenizer.is_unknown(i): return "unknown"
    if tokenizer.is_control(i): return "control"
    if tokenizer.is_byte(i): return "byte"
    return "normal"
writer.add_token_list([tokenizer.id_to_piece(i) for i in ids])
writer.add_token_scores([tokenizer.get_score(i) for i in ids])
writer.add_token_types([kinds[kind(i)] for i in ids])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)

rng = np.random.default_rng(1)
def matrix(name, n_out, n_in, quantization):
    data = rng.normal(0, n_in ** -0.5, (n_out, n_in)).astype(np.float32)
    if quantization is None:
        writer.add_tensor(name, data)
    else:
        writer.add_tensor(name, gguf.quants.quantize(data, quantization), raw_dtype=quantization)
def norm(name):
    writer.add_tensor(name, np.ones(HIDDEN, np.float32))
Q = gguf.GGMLQuantizationType
matrix("token_embd.weight", len(ids), HIDDEN, Q.Q8_0)
for i in range(LAYERS):
    norm(f"blk.{i}.attn_norm.weight")
    matrix(f"blk.{i}.attn_q.weight", HIDDEN, HIDDEN, Q.Q4_0)
    matrix(f"blk.{i}.attn_k.weight", HIDDEN // HEADS * KV_HEADS, HIDDEN, Q.Q5_1)
    matrix(f"blk.{i}.attn_v.weight", HIDDEN // HEADS * KV_HEADS, HIDDEN, Q.Q5_0)
    matrix(f"blk.{i}.attn_output.weight", HIDDEN, HIDDEN, Q.Q4_1)
    norm(f"blk.{i}.ffn_norm.weight")
    matrix(f"blk.{i}.ffn_gate.weight", FEED_FORWARD, HIDDEN, Q.F16)
    matrix(f"blk.{i}.ffn_up.weight", FEED_FORWARD, HIDDEN, None)
    matrix(f"blk.{i}.ffn_down.weight", HIDDEN, FEED_FORWARD, Q.Q8_0)
norm("output_norm.weight")
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

awkward = [
    "def f(x):\n\treturn x+1\n", "    if a == 12345:\r\n        pass", "naïve café — 中文 🦀🦀",
    "x = {'a': [1, 2.50, 0x1F]}  # ok", "<s></s><unk> ▁<PRE> <0x0A>", " leading", "trailing  ", "\n\n\n", " ", "  ", "a",
    "fn main() { println!(\"{:>8}\", 3.14); }", "ααβ Привет, мир! שלום", "\u0000\u0001\u007f", "a\u0301e\u0301",
    "pub(crate) fn returns_the_returned_return(self_self: &Self) -> Result<Option<String>, Error> {",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "                 deeply", "==========!!!!!!", "let mut let_mut = letmut;",
]
awkward += [line for line in sentences[:400:4]]
json.dump([{"text": text, "ids": tokenizer.encode(text)} for text in awkward],
          open("crates/model/tests/data/spm.golden.json", "w"), ensure_ascii=False)
