//! What a person types, key by key, and what must stand in the document in the end.

const ADA: &str = "The ferry leaves the old pier at seven, as it does every morning. Nobody on board \
    notices when the crew changes: the coffee stays warm, the gulls keep up, and the far shore comes \
    nearer at the same pace. ";

const BO: &str = "Things to take along: the big thermos, two blankets, the tide table, and a pencil \
    that writes on wet paper. Ask Ada whether the harbour master still wants the list on Friday. ";

/// A wrong letter is typed, and taken back, in every so manieth word.
const SLIP_EVERY: usize = 9;

/// One press of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A key that types a character.
    Types(char),
    /// The key that takes the last character back.
    Backspace,
}

/// A person who types the same few sentences again and again, with slips.
#[derive(Clone, Debug)]
pub struct Person {
    /// What the others call the person.
    pub name: &'static str,
    sentences: &'static str,
    at: usize,
    words: usize,
    /// A letter of a slip that has still to be taken back.
    slipped: bool,
    text: String,
    keys: usize,
}

impl Person {
    /// The first person.
    #[must_use]
    pub fn ada() -> Self {
        Self::new("Ada Lindqvist", ADA)
    }

    /// The second person.
    #[must_use]
    pub fn bo() -> Self {
        Self::new("Bo Marsh", BO)
    }

    fn new(name: &'static str, sentences: &'static str) -> Self {
        let text = String::new();
        Self { name, sentences, at: 0, words: 0, slipped: false, text, keys: 0 }
    }

    /// What stands there when all keys so far have been pressed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Keys pressed so far.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// The next key that the person presses.
    pub fn next_key(&mut self) -> Key {
        self.keys += 1;
        if self.slipped {
            self.slipped = false;
            self.text.pop();
            return Key::Backspace;
        }
        let rest = &self.sentences[self.at..];
        let next = rest.chars().next().unwrap_or(' ');
        if next == ' ' {
            self.words += 1;
            if self.words.is_multiple_of(SLIP_EVERY) && !self.text.ends_with('#') {
                self.words += 1;
                self.slipped = true;
                self.text.push('#');
                return Key::Types('#');
            }
        }
        self.at = (self.at + next.len_utf8()) % self.sentences.len();
        self.text.push(next);
        Key::Types(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_text_agree() {
        for mut person in [Person::ada(), Person::bo()] {
            let mut typed = String::new();
            let mut slips = 0;
            for _ in 0..2000 {
                match person.next_key() {
                    Key::Types(character) => typed.push(character),
                    Key::Backspace => {
                        assert_eq!(typed.pop(), Some('#'));
                        slips += 1;
                    }
                }
                assert_eq!(typed, person.text());
            }
            assert!(slips > 10, "{slips} slips");
            // A slip is two keys and no text, or so far one key and one letter.
            assert_eq!(
                person.text().replace('#', "").len(),
                2000 - 2 * slips - typed.matches('#').count()
            );
        }
    }
}
