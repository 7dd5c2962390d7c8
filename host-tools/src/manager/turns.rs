//! One at a time for each service: who suspends or resumes it is not disturbed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::ApiError;

/// The services that somebody is at work on.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    taken: Arc<Mutex<BTreeSet<String>>>,
}

/// A turn; it ends with its value.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    name: String,
}

impl Turns {
    /// Takes the turn of a service, if nobody has it.
    ///
    /// # Errors
    /// Somebody has.
    pub fn take(&self, name: &str) -> Result<Turn, ApiError> {
        if self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
            Ok(Turn { turns: self.clone(), name: name.to_owned() })
        } else {
            Err(ApiError::conflict(format!("`{name}` is just being suspended or resumed")))
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_service() {
        let turns = Turns::default();
        let first = turns.take("p").unwrap();
        assert!(turns.take("p").is_err() && turns.take("q").is_ok());
        drop(first);
        assert!(turns.take("p").is_ok());
    }
}
