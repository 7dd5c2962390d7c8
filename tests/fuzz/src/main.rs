//! One program for all targets, because each would be linked with all of the host tools.
//!
//! `$FERRY_FUZZ_TARGET` names the target, whose inputs libFuzzer invents; `seeds` writes inputs to begin with to
//! `$FERRY_FUZZ_SEEDS/TARGET/` instead.
#![no_main]

mod seeds;
mod targets;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn choose() {
    let name = std::env::var("FERRY_FUZZ_TARGET").unwrap_or_default();
    if name == "seeds" {
        let dir = std::env::var("FERRY_FUZZ_SEEDS").expect("FERRY_FUZZ_SEEDS names a directory");
        seeds::write(Path::new(&dir));
        std::process::exit(0);
    }
    let target = targets::named(&name).expect("FERRY_FUZZ_TARGET names a target, or is `seeds`");
    TARGET.get_or_init(|| target);
}

fuzz_target!(
    init: choose(),
    |input| {
        if let Some(target) = TARGET.get() {
            target(input);
        }
    }
);
