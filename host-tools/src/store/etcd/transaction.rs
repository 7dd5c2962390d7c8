//! One change after another, each made once whatever becomes of its answer.
//!
//! Every change also writes the key `turn`, and is made only if nothing else has written that since the change
//! we know of. So of several attempts at one change at most one is made, and one that etcd gets late, after
//! another change, is not made any more. When an attempt is refused, the value of `turn` says whether an
//! earlier attempt was the one that went through.

use std::time::Instant;

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse, TxnResponse};

use super::client::{PATIENCE, is_passing, pauses};
use super::{EtcdStore, StoreError, failed};

/// The last change we know of: revision of the key `turn`, 0 if there is none.
#[derive(Debug, Default)]
pub(super) struct Turn(i64);

/// How an attempt went.
enum Attempt {
    /// It was made, as the change of this revision.
    Made(i64),
    /// Another change has been made since the one we knew; this is now the last.
    Stale(i64),
}

impl EtcdStore {
    /// Makes the change that `plan` reads the store for; reads again if the store has changed meanwhile.
    pub(super) async fn change<T, F>(&self, plan: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<(Vec<TxnOp>, T), StoreError>>,
    {
        let mut turn = self.turn.lock().await;
        let until = Instant::now() + PATIENCE;
        loop {
            let (operations, result) = plan().await?;
            match self.attempt(turn.0, operations, until).await? {
                Attempt::Made(revision) => {
                    turn.0 = revision;
                    return Ok(result);
                }
                Attempt::Stale(revision) if revision == turn.0 => {
                    return Err(failed("etcd refuses a change without a reason"));
                }
                Attempt::Stale(_) if Instant::now() >= until => {
                    return Err(failed("others change the store all the time"));
                }
                Attempt::Stale(revision) => turn.0 = revision,
            }
        }
    }

    async fn attempt(
        &self,
        known: i64,
        mut operations: Vec<TxnOp>,
        until: Instant,
    ) -> Result<Attempt, StoreError> {
        let fence = self.fence.get().ok_or_else(not_leading)?;
        let name = format!("{:016x}", getrandom::u64().map_err(failed)?);
        let turn = self.keys.turn();
        operations.push(TxnOp::put(turn.as_str(), name.as_str(), None));
        let transaction = Txn::new()
            .when([fence.stands(), Compare::mod_revision(turn.as_str(), CompareOp::Equal, known)])
            .and_then(operations)
            // Whether we lead is asked in the same breath.
            .or_else([
                TxnOp::get(turn.as_str(), None),
                TxnOp::txn(Txn::new().when([fence.stands()])),
            ]);
        let mut pause = pauses();
        loop {
            match self.etcd.transaction(transaction.clone()).await {
                Ok(answer) if answer.succeeded() => {
                    let header = answer.header().ok_or_else(|| failed("etcd says no revision"))?;
                    return Ok(Attempt::Made(header.revision()));
                }
                Ok(answer) => {
                    let (revision, value, leads) = refusal(&answer);
                    // An earlier attempt whose answer was lost.
                    if value == name.as_bytes() {
                        return Ok(Attempt::Made(revision));
                    }
                    return if leads { Ok(Attempt::Stale(revision)) } else { Err(not_leading()) };
                }
                Err(error) if is_passing(&error) && Instant::now() < until => {
                    tracing::debug!("etcd did not say how a change went: {error}");
                    pause.wait().await;
                }
                Err(error) => {
                    return Err(failed(format!(
                        "etcd does not say whether the change was made: {error}"
                    )));
                }
            }
        }
    }
}

fn not_leading() -> StoreError {
    failed("this manager does not lead any more; another does, or will in a moment")
}

/// Revision and value of the key `turn`, and whether we lead.
fn refusal(answer: &TxnResponse) -> (i64, Vec<u8>, bool) {
    let (mut revision, mut value, mut leads) = (0, Vec::new(), false);
    for response in answer.op_responses() {
        match response {
            TxnOpResponse::Get(found) => {
                if let Some(turn) = found.kvs().first() {
                    (revision, value) = (turn.mod_revision(), turn.value().to_vec());
                }
            }
            TxnOpResponse::Txn(nested) => leads = nested.succeeded(),
            _ => {}
        }
    }
    (revision, value, leads)
}
