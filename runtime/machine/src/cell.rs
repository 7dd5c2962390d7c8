//! State of a machine with one CPU and no preemption among our own code.

use core::cell::{RefCell, RefMut};

/// A static that the host-bound side borrows for the length of a call.
///
/// Interrupt handlers of ours never borrow one (they touch atomics only), so a borrow is never
/// interrupted by another; a nested borrow is a bug and panics.
pub struct Local<T>(RefCell<T>);

// SAFETY: the machine has one CPU, one task runs our code, and interrupt handlers never borrow; so no
// two contexts reach the RefCell at the same time.
unsafe impl<T> Sync for Local<T> {}

impl<T> Local<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// Borrows the value.
    pub fn borrow(&self) -> RefMut<'_, T> {
        self.0.borrow_mut()
    }
}
