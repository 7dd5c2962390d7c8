//! `checkpoint`, `restore`, `image`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use axum::body::Body;
use clap::{Args, Subcommand};
use http_body_util::BodyExt;
use hyper::Method;
use serde::de::DeserializeOwned;

use super::Done;
use super::output::{Progress, Table, age, print, print_json};
use super::services::{LONG, SHORT};
use crate::agent::checkpoint::MAX_SNAPSHOT;
use crate::api::{
    ApiError, Checkpoint, CheckpointRequest, Client, Image, Resumed, Service, now_us,
};
use crate::repository::ImageName;
use crate::security::seal;
use crate::snapshot::Snapshot;
use crate::snapshot::file::write_atomically;
use crate::timeline::draw::{bytes, time};

/// `checkpoint`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct CheckpointArgs {
    #[arg(help = "Name of the service")]
    pub name: String,
    #[arg(short, long, value_name = "FILE", help = "File to write the snapshot to")]
    pub export: PathBuf,
    #[arg(short = 'R', long, help = "Let the service go on afterwards")]
    pub leave_running: bool,
}

/// `restore`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct RestoreArgs {
    #[arg(short, long, value_name = "FILE", help = "Snapshot file to read")]
    pub import: PathBuf,
    #[arg(long, value_name = "NODE", help = "Node to restore it on")]
    pub on: String,
    #[arg(long, help = "Name of the service [default: the one it had]")]
    pub name: Option<String>,
}

/// `image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Store an image file under a name
    Push {
        /// Image file
        file: PathBuf,
        /// `NAME[:TAG]` [default: the file's name]
        name: Option<String>,
    },
    /// List images
    Ls,
    /// Take a name away; the file goes with its last name
    Rm {
        /// `NAME[:TAG]`
        name: String,
    },
}

fn read(path: &Path) -> Result<Vec<u8>, ApiError> {
    std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            ApiError::not_found(format!("there is no file {}", path.display()))
        }
        _ => ApiError::invalid(format!("{}: {error}", path.display())),
    })
}

/// Sends a file and takes JSON.
async fn upload<T: DeserializeOwned>(
    manager: &Client,
    method: Method,
    path: &str,
    content: Vec<u8>,
) -> Result<T, ApiError> {
    let exchange = async {
        let answer = manager.send(method, path, Body::from(content)).await?;
        let body = answer.into_body().collect().await.map_err(ApiError::failed)?;
        serde_json::from_slice(&body.to_bytes()).map_err(ApiError::failed)
    };
    tokio::time::timeout(LONG, exchange)
        .await
        .unwrap_or_else(|_| Err(ApiError::failed("the manager did not answer in time")))
}

/// The name of an image that was given as a file.
///
/// # Errors
/// The file's name is no name.
pub fn file_name(path: &Path) -> Result<String, ApiError> {
    let stem =
        path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: ImageName = stem
        .parse()
        .map_err(|error: crate::api::spec::NameError| ApiError::invalid(error.to_string()))?;
    Ok(name.to_string())
}

/// Pushes an image file under a name.
///
/// # Errors
/// It is no image, or the manager does not answer.
pub async fn push(manager: &Client, file: &Path, name: &str) -> Result<Image, ApiError> {
    let content = read(file)?;
    crate::qemu::ImageInfo::read(&content)
        .map_err(|error| ApiError::invalid(format!("{}: {error}", file.display())))?;
    upload(manager, Method::PUT, &format!("/v1/images/{name}"), content).await
}

/// `image`.
///
/// # Errors
/// There is no such image.
pub async fn image(manager: &Client, command: ImageCommand, json: bool) -> Done {
    match command {
        ImageCommand::Push { file, name } => {
            let name = match name {
                Some(name) => name,
                None => file_name(&file)?,
            };
            let image = push(manager, &file, &name).await?;
            if json {
                print_json(&image)?;
            } else {
                print(&format!("{} {}\n", image.image.name, image.image.digest));
            }
        }
        ImageCommand::Ls => {
            let images: Vec<Image> = manager.get("/v1/images").await?;
            if json {
                print_json(&images)?;
                return Ok(ExitCode::SUCCESS);
            }
            let mut table = Table::new(&["NAME", "DIGEST", "BUILD ID", "SIZE", "AGE"]);
            for Image { image, bytes: len, pushed_us } in images {
                table.row([
                    image.name,
                    image.digest.short(),
                    image.build_id.short(),
                    bytes(len),
                    age(pushed_us, now_us()),
                ]);
            }
            table.print();
        }
        ImageCommand::Rm { name } => {
            let path = format!("/v1/images/{name}");
            let image: Image = manager.json(Method::DELETE, &path, &(), SHORT).await?;
            if json {
                print_json(&image)?;
            } else {
                print(&format!("{} removed\n", image.image.name));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `checkpoint`.
///
/// # Errors
/// No file was written; the message says what the service does.
pub async fn checkpoint(manager: &Client, args: CheckpointArgs, json: bool) -> Done {
    let directory = match args.export.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(ApiError::not_found(format!("there is no directory {}", directory.display())));
    }
    let mut progress = Progress::new(!json);
    progress.show("freezing and writing");
    let request = CheckpointRequest { leave_running: args.leave_running, id: None, hold: false };
    let path = format!("/v1/services/{}/checkpoint", args.name);
    let made: Checkpoint = manager.json(Method::POST, &path, &request, LONG).await?;
    let kept = |error: ApiError| {
        let digest = made.snapshot;
        ApiError {
            message: format!("{}; the manager keeps the snapshot as {digest}", error.message),
            ..error
        }
    };
    let file = manager
        .download(&format!("/v1/snapshots/{}", made.snapshot), MAX_SNAPSHOT)
        .await
        .map_err(kept)?;
    write_atomically(&args.export, &file)
        .map_err(|error| kept(ApiError::failed(format!("{}: {error}", args.export.display()))))?;
    progress.clear();
    if json {
        print_json(&made)?;
        return Ok(ExitCode::SUCCESS);
    }
    let then = if args.leave_running {
        format!("it runs on after {}", time(made.frozen_us))
    } else {
        "it has ended".into()
    };
    print(&format!(
        "{}: {} pages, {} connections, {} in {}; {then}\n",
        args.name,
        made.pages,
        made.connections,
        bytes(made.bytes),
        args.export.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// `restore`.
///
/// # Errors
/// Why the file or the node is refused; what runs is not touched.
pub async fn restore(manager: &Client, args: RestoreArgs, json: bool) -> Done {
    let content = read(&args.import)?;
    // A bad file is refused here already, without a manager.
    if seal::cluster_of(&content).is_none() {
        Snapshot::read(&content)
            .map_err(|error| ApiError::invalid(format!("{}: {error}", args.import.display())))?;
    }
    let mut progress = Progress::new(!json);
    progress.show("restoring");
    let name = args.name.map(|name| format!("&name={name}")).unwrap_or_default();
    let path = format!("/v1/restore?on={}{name}", args.on);
    let (service, resumed): (Service, Resumed) =
        upload(manager, Method::POST, &path, content).await?;
    progress.clear();
    if json {
        print_json(&serde_json::json!({ "service": service, "resumed": resumed }))?;
    } else {
        print(&format!(
            "{} runs on node {} at {}, {} connections go on\n",
            service.spec.name, args.on, service.spec.ip, resumed.connections
        ));
    }
    Ok(ExitCode::SUCCESS)
}
