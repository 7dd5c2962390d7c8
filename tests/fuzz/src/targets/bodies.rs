//! Bodies that an agent is sent, tokens that people type, and sealed files. (A manager's: see `requests`.)

use std::str::FromStr;

use ferry_fuzz::read;
use host_tools::api::check::{DestinationQuestion, SourceQuestion};
use host_tools::api::{
    CheckpointRequest, HoldRequest, MoveRequest, ReleaseRequest, ResumeRequest, StartRequest,
};
use host_tools::security::seal::{SealKey, cluster_of};
use host_tools::security::token::Token;

pub fn run(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else { return };
    match kind % 10 {
        0 => drop(read::<StartRequest>(rest)),
        1 => drop(read::<MoveRequest>(rest)),
        2 => drop(read::<CheckpointRequest>(rest)),
        3 => drop(read::<ResumeRequest>(rest)),
        4 => {
            if let Some(request) = read::<HoldRequest>(rest) {
                let _ = request.table.check(request.spec.ip);
            }
        }
        5 => drop(read::<ReleaseRequest>(rest)),
        6 => drop(read::<SourceQuestion>(rest)),
        7 => drop(read::<DestinationQuestion>(rest)),
        8 => {
            let text = std::str::from_utf8(rest).unwrap_or_default();
            if let Ok(token) = Token::from_str(text) {
                assert!(
                    Token::from_str(&token.to_string()).as_ref() == Ok(&token),
                    "another token"
                );
            }
        }
        _ => {
            let key = SealKey::new("c1".into(), [7; 32]);
            let _ = cluster_of(rest);
            if let Ok(opened) = key.open(rest) {
                // Only who has the key makes what it opens: that is the seed.
                assert_eq!(opened, [0x5A; 256], "a seal was forged");
            }
        }
    }
}
