//! Text of a plugin's, as it may be shown to people.

/// Whether a character shows as nothing, or reorders what is shown around it: what a person reads is
/// then not what is there.
pub(crate) fn deceives(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Whether a terminal, or a reader, could take it for something else.
pub(crate) fn unfit(c: char) -> bool {
    c.is_control() || deceives(c)
}

/// A text without what a terminal would act on and without what shows as nothing or reorders a line, of
/// at most so many characters: as text of a stranger's may be shown.
pub fn plain(text: &str, most: usize) -> String {
    text.chars().filter(|c| !unfit(*c)).take(most).collect()
}

/// A stable code: of lower-case letters, digits and hyphens, at most 64.
pub(crate) fn code(text: &str) -> String {
    let fits = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-';
    text.chars().filter(fits).take(64).collect()
}
