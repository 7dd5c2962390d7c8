//! What manager and agents keep for their own next start: a file may be of another version, or damaged.

use ferry_fuzz::read;
use host_tools::agent::descriptor::Descriptor;
use host_tools::api::NodeReport;
use host_tools::manager::moves::KeptMove;
use host_tools::manager::moves::Moves;
use host_tools::manager::state::KeptDrain;
use host_tools::store::Record;

pub fn run(input: &[u8]) {
    let Some((&kind, json)) = input.split_first() else { return };
    match kind % 5 {
        0 => drop(read::<Record>(json)),
        1 => {
            if let Some(kept) = read::<KeptMove>(json) {
                let id = kept.migration.id.clone();
                // The manager starts with it, and shows it.
                let moves = Moves::new(vec![kept]);
                let _ = (moves.list(), moves.get(&id).is_ok());
            }
        }
        2 => drop(read::<KeptDrain>(json)),
        3 => drop(read::<NodeReport>(json)),
        _ => {
            if let Some(descriptor) = read::<Descriptor>(json) {
                let _ = descriptor.stem();
            }
        }
    }
}
