"""The strings that compare.py compares with: pools of what tokenizers get wrong, drawn with a fixed seed."""
import random

SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2028", "\u0085", "\u000b", "\f",
          "\u200b", "\u1680", "\u202f", "\ufeff"]
WORDS = ["hello", "Hello", "world", "user", "the", "Tokenizer", "naïve", "Straße", "ſ", "I", "x"]
SCRIPTS = ["English", "Ελληνικά", "Русский", "Հայերեն", "עברית", "العربية", "ܣܘܪܝܝܐ", "ދިވެހި", "हिन्दी", "বাংলা",
           "ਪੰਜਾਬੀ", "ગુજરાતી", "ଓଡ଼ିଆ", "தமிழ்", "తెలుగు", "ಕನ್ನಡ", "മലയാളം", "සිංහල", "ไทย", "ລາວ", "བོད་སྐད", "မြန်မာ",
           "ქართული", "አማርኛ", "ᏣᎳᎩ", "ᐃᓄᒃᑎᑐᑦ", "ភាសាខ្មែរ", "ᠮᠣᠩᠭᠣᠯ", "日本語ひらがなカタカナ", "한국어", "中文", "𐌲𐌿𐍄", "𐎀𐎁"]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
          "<tool_response>", "</tool_response>", "<|vision_start|>", "<|fim_prefix|>"]

POOLS = {
    "white space": SPACES + WORDS[:3],
    "digits": list("0123456789") + ["٣", "४", "½", "Ⅻ", "²", "１", " ", ",", ".", "-", "12345678"],
    "contractions": ["'s", "'S", "'t", "'re", "'RE", "'ve", "'m", "'ll", "'LL", "'d", "'ſ", "’s", "'", "it", "we", "I",
                     " ", "'K", "'x"],
    "CJK": ["漢字", "日本", "ひらがな", "カタカナ", "한국어", "中", "。", "、", "「", "」", "　", "ｱ", "Ａ", " ", "a"],
    "emoji": ["😀", "👨‍👩‍👧‍👦", "👍🏽", "🇩🇪", "❤️", "\u200d", "\ufe0f", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "#️⃣", " ", "a", "©"],
    "normal forms": ["é", "e\u0301", "ẹ\u0301", "e\u0323\u0301", "e\u0301\u0323", "가", "ᄀ", "ᅡ", "ᆨ", "Å", "\u212b",
                     "\u0301", "\u0338", "ﬁ", "①", "\u0958", "\u1e9b\u0323", "\U0001d15e", " ", "a", "<", ">"],
    "bidi": ["שלום", "عربي", "\u200f", "\u200e", "\u202e", "\u202c", "\u2066", "\u2069", " ", "abc", "123", "ּ", "ِ"],
    "30 scripts": SCRIPTS + [" ", ", "],
    "code": ["def f(x):", "\n    ", "\n\t", "return x", " == ", "!=", "->", "{", "}", "();", "//", "/* */", "\"a\\n\"", "::",
             "#include <", ">", "0xff", "1e-6", "_x_", "a.b", "<<=", "\r\n", "  "],
    "forged and broken tokens": TOKENS + [t[:k] for t in TOKENS for k in (1, 3, len(t) - 1)] + [
        t[1:] for t in TOKENS] + ["user", "\n", " "],
    "runs": ["a" * 37, " " * 50, "\n" * 23, "7" * 41, "=" * 64, "é" * 19, "e\u0301" * 19, "\r\n" * 17, "\t" * 30, "漢" * 21,
             "\u0301" * 33, "x", " "],
    "everything": SPACES + WORDS + SCRIPTS + TOKENS + list("!\"#$%&()*+,-./:;<=>?@[]^_`{|}~") + ["'s", "e\u0301", "😀"],
}

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LING = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
QWEN35 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
KIMI = (r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BLOOM = (r" ?[^(\s|[.,!?…。，、।۔،])]+",)
# The splitting patterns of other families; none means ByteLevel's own.
PATTERNS = {"ByteLevel's own pattern": (), "GPT-2's": (GPT2,), "Llama 3's": (LLAMA3,), "o200k's": (O200K,),
            "DeepSeek V3's": DEEPSEEK, "Ling's": (LING,), "Qwen 3.5's": (QWEN35,), "Kimi's": (KIMI,), "Bloom's": BLOOM}


def mixed(n):
    """n strings, of each pool as many."""
    drawn = random.Random(1)
    names = list(POOLS)
    return [(name, "".join(drawn.choice(POOLS[name]) for _ in range(drawn.randrange(1, 24))))
            for name in (names[i % len(names)] for i in range(n))]


def scalars():
    """Every Unicode scalar between letters, behind a space, and doubled before a digit, 64 to a string."""
    chars = [chr(i) for i in range(0x110000) if not 0xd800 <= i < 0xe000]
    contexts = [lambda ch: f"a{ch}b ", lambda ch: f" {ch}\n", lambda ch: f"{ch}{ch}1"]
    return [("scalars", "".join(context(ch) for ch in chars[i:i + 64])) for context in contexts
            for i in range(0, len(chars), 64)]


def long_runs():
    """Runs that reach the limits of matchers which backtrack, alone and before, behind and between words."""
    tail = "Hello world, it's 2025."
    cases = [("x", " ", 1_000_002, tail), ("", " ", 2_500_000, ""), ("x", "\n", 1_100_000, tail), ("", "\t", 1_200_000, "\n"),
             ("x ", "\u00a0", 1_000_100, " y"), ("", "\u3000", 1_000_100, "漢"), ("a", "\r\n", 600_000, "b"),
             ("", "a", 1_000_000, tail), ("", "7", 1_000_000, ""), ("'", "=", 1_000_000, "s"), ("e", "\u0301", 300_000, "x"),
             ("", "e\u0301", 500_000, ""), ("", "漢", 400_000, ""), ("", "<", 1_000_000, "|im_end|>"),
             ("", " \n", 600_000, " z"), ("", " a", 600_000, ""), ("", "\n ", 600_000, "q"), ("q", " ", 999_999, "\n")]
    return [("run", before + run * times + after) for before, run, times, after in cases]


def tagged(n):
    """Strings around added tokens."""
    parts = ["<obs>", "</obs>", "<o", "obs", "bs>", "<", ">", "<é>", "<e\u0301>", "</e\u0301>", "</é>", "é", "e", "\u0301",
             "\u0338", "hello", "helloworld", "the", "then", " world", "!", "!!", "<|im_end|>", "<think>", " ", "  ", "\n",
             "\t", "a", "_", "1", "ﬁn", "fin", "Ⅻ", "XII", "＜obs＞", "가", "가", "\u200d", ".", "漢"]
    drawn = random.Random(2)
    return [("tags", "".join(drawn.choice(parts) for _ in range(drawn.randrange(1, 14)))) for _ in range(n)]
