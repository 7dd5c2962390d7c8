//! stub
use super::Done;
use crate::api::Client;
/// a
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct TopArgs {}
/// a
pub async fn top(_manager: &Client, _args: TopArgs) -> Done { Ok(std::process::ExitCode::SUCCESS) }
