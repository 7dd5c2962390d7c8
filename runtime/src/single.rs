//! Statics of a side that has one thread.

use core::ops::Deref;

/// A static that only the portable side's one thread uses.
pub struct Single<T>(T);

// SAFETY: threads cannot be spawned on the portable side (`sys_spawn` is refused), and interrupt
// handlers belong to the host-bound side, which never touches its statics.
unsafe impl<T> Sync for Single<T> {}

impl<T> Single<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for Single<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
