//! What is fuzzed: each takes one input.

mod asleep;
mod bodies;
mod control;
mod image;
mod link;
mod memory;
mod pages;
mod records;
mod requests;
mod segments;
mod snapshot;

/// What takes the inputs of a target.
type Target = fn(&[u8]);

/// All targets, by name.
const ALL: [(&str, Target); 11] = [
    ("asleep", asleep::run),
    ("bodies", bodies::run),
    ("control", control::run),
    ("image", image::run),
    ("link", link::run),
    ("memory", memory::run),
    ("pages", pages::run),
    ("records", records::run),
    ("requests", requests::run),
    ("segments", segments::run),
    ("snapshot", snapshot::run),
];

/// The target of this name.
pub fn named(name: &str) -> Option<Target> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}
