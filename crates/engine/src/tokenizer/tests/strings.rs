//! Strings that tokenizers get wrong, drawn from a seed.

/// An endless supply of strings; the same seed gives the same ones.
pub(super) struct Strings(u64);

/// Pieces that are joined: what patterns treat alike or differently, what normalisers change,
/// what vocabularies have special tokens for.
#[rustfmt::skip]
const PIECES: &[&str] = &[
    "the", "The", " the", "hello", "World", " of", "ing", "zzyzx", " paradoxically",
    "tokenizer", "I'm", "'s", "'S", "'re", "'RE", "'Ll", "'d", "'", "''", "'ſ", "'t", "can't",
    "'v", "'x", "’s", " ", "  ", "   ", "           ", "\t", "\n", "\r\n", "\r", "\n\n\n",
    " \n", "\n ", " \t \n\t ", "\u{a0}", "\u{2003}", "\u{3000}", "\u{85}", "\u{b}", "\u{2028}",
    "\u{200b}", "\u{feff}", "\0", "\u{1}", "0", "7", "12", "123", "1234", "12345678901", "3.14",
    "1,000", "²", "½", "Ⅷ", "١٢٣", "१२३४", "１２", "二〇", "0x1F", "1e-9", "a1b2", ".", ",", "!",
    "?!", "...", "…", "-", "—", "(", ")]}", "::", "->", "$", "+=", "<", ">", "|", "||", "~",
    "^", "`", "```", "\\", "/", "//", "#", "@", "&", "*", "_", "__", "%", "\"", "=", "é",
    "e\u{301}", "à\u{323}", "a\u{323}\u{300}", "\u{301}", "Å", "\u{212b}", "ﬁ", "ß", "İ", "ǆ",
    "각", "\u{1100}\u{1161}\u{11a8}", "Ёж", " быстрая", "лиса", "狐狸", "跳过了", "。", "，", "カタカナ",
    "ｶﾅ", "ひらがな", "الثعلب", " البني", "लोमड़ी", "कूदती", "ไทย", "한국어", "ქართული", "😀",
    "👨\u{200d}👩\u{200d}👧", "🇩🇪", "❤\u{fe0f}", "1️⃣", "🏽", "\u{20e3}", "\u{e000}", "\u{fffd}",
    "\u{ffff}", "\u{10ffff}", "𝒳", "𠀀", "\u{f1d00}", "▁", "▁▁", "▁the", "Ġ", "Ċ", "ġ", "<0x41>",
    "<0x0A>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im|>", "<|im_", "|>", "<|",
    "[INST]", "[/INST]", "[INST", "<tool_call>", "<think>", "<think>x", "<think", "<s>", "</s>",
    "<unk>", "assistant", "\nuser\n",
];

impl Strings {
    pub(super) fn new(seed: u64) -> Strings {
        Strings(seed)
    }

    /// A number from 0 to `end - 1`. Source: splitmix64.
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % end as u64) as usize
    }

    /// The next string.
    pub(super) fn next(&mut self) -> String {
        let mut text = String::new();
        match self.below(10) {
            0..=5 => {
                for _ in 0..1 + self.below(14) {
                    text.push_str(PIECES[self.below(PIECES.len())]);
                }
            }
            6 => (0..self.below(24)).for_each(|_| text.extend(self.any_character())),
            // Few kinds of character, close together: every border between them.
            7 => {
                let few = [self.any_character(), self.any_character(), Some(' ')];
                (0..self.below(30)).for_each(|_| text.extend(few[self.below(3)]));
            }
            8 => {
                let few = b" \t\n\r'sStTlLdm019.,<>|a_";
                (0..self.below(40)).for_each(|_| text.push(few[self.below(few.len())].into()));
            }
            _ => {
                let piece = PIECES[self.below(PIECES.len())];
                text = piece.repeat(1 + self.below(40));
                text.push_str(PIECES[self.below(PIECES.len())]);
            }
        }
        text
    }

    /// A character of a block chosen first, so that rare ones are not.
    fn any_character(&mut self) -> Option<char> {
        #[rustfmt::skip]
        const BLOCKS: [(u32, u32); 12] = [
            (0x20, 0x7f), (0, 0x20), (0xa0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x600, 0xe00),
            (0xe00, 0x2000), (0x2000, 0x3100), (0x3100, 0xd800), (0xe000, 0x1_0000),
            (0x1_0000, 0x2_0000), (0x2_0000, 0x11_0000),
        ];
        let (from, to) = BLOCKS[self.below(BLOCKS.len())];
        char::from_u32(from + self.below((to - from) as usize) as u32)
    }

    /// Long and empty ones.
    pub(super) fn written() -> Vec<String> {
        let mut texts = vec![String::new(), PIECES.concat(), PIECES.join(" ")];
        for piece in
            ["a", " ", "\n", " \n", "0", "ab", "!", "é", "😀", "e\u{301}", "the ", "▁", "<|"]
        {
            texts.push(piece.repeat(3000));
            texts.push(format!("x{}y", piece.repeat(3000)));
        }
        texts
    }
}
