//! `run`, `ps`, `inspect`, `logs`, `stop`, `conns`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use hyper::Method;

use super::Done;
use super::args::RunArgs;
use super::files::{file_name, push};
use super::output::{Progress, Table, age, print, print_json};
use super::sleep;
use crate::api::{ApiError, Client, ConnectionLine, RunRequest, Service, ServiceState, now_us};
use crate::manager::services::START_LIMIT;

/// Longest time a command waits for a large request: the manager has its own, shorter limits.
pub const LONG: Duration = Duration::from_secs(3 * START_LIMIT.as_secs());
/// Longest time a command waits for other requests.
pub const SHORT: Duration = Duration::from_secs(30);

/// `run`.
///
/// # Errors
/// Nothing was started.
pub async fn run(manager: &Client, args: RunArgs, json: bool) -> Done {
    let mut progress = Progress::new(!json);
    let path = Path::new(&args.image);
    // A name without a slash may be both; then the repository's image is meant, as with podman,
    // unless there is none.
    let image = if path.is_file() {
        progress.show("pushing the image");
        push(manager, path, &file_name(path)?).await?.image.digest.to_string()
    } else if args.image.contains('/') {
        return Err(ApiError::not_found(format!("there is no file {}", args.image)));
    } else {
        args.image
    };
    let request = RunRequest {
        image,
        name: args.name,
        node: args.on,
        ip: args.ip,
        memory_mib: args.memory,
        machine: args.machine,
        args: args.args,
    };
    progress.show("booting");
    let service: Service = manager.json(Method::POST, "/v1/services", &request, LONG).await?;
    progress.clear();
    if json {
        print_json(&service)?;
    } else {
        let node = service.node.as_deref().unwrap_or("-");
        let Service { spec, .. } = &service;
        print(&format!("{} runs on node {node} at {}\n", spec.name, spec.ip));
    }
    Ok(ExitCode::SUCCESS)
}

fn state_name(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Starting => "starting",
        ServiceState::Running => "running",
        ServiceState::Migrating => "migrating",
        ServiceState::Suspended => "suspended",
        ServiceState::Failed => "failed",
        ServiceState::Unknown => "unknown",
    }
}

/// `ps`.
///
/// # Errors
/// The manager does not answer.
pub async fn ps(manager: &Client, json: bool) -> Done {
    let services: Vec<Service> = manager.get("/v1/services").await?;
    if json {
        print_json(&services)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table =
        Table::new(&["NAME", "STATE", "NODE", "ADDRESS", "IMAGE", "MEMORY", "EPOCH", "AGE"]);
    for Service { spec, node, epoch, state, created_us, .. } in services {
        table.row([
            spec.name,
            state_name(state).into(),
            node.unwrap_or_else(|| "-".into()),
            spec.ip.to_string(),
            spec.image.name,
            format!("{} MiB", spec.memory_mib),
            epoch.to_string(),
            age(created_us, now_us()),
        ]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}

/// `inspect`.
///
/// # Errors
/// There is no such service.
pub async fn inspect(manager: &Client, name: &str, json: bool) -> Done {
    let service: Service = manager.get(&format!("/v1/services/{name}")).await?;
    if json {
        print_json(&service)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Service { spec, .. } = &service;
    let mut lines = vec![
        ("Name", spec.name.clone()),
        ("Id", spec.id.clone()),
        ("State", state_name(service.state).into()),
        ("Node", service.node.clone().unwrap_or_else(|| "-".into())),
        ("Epoch", service.epoch.to_string()),
        ("Address", format!("{}/{}", spec.ip, spec.prefix)),
        ("MAC", spec.mac.clone()),
        ("Image", spec.image.name.clone()),
        ("Digest", spec.image.digest.to_string()),
        ("Build id", spec.image.build_id.to_string()),
        ("Memory", format!("{} MiB", spec.memory_mib)),
        ("Machine", format!("{:?}", spec.machine).to_lowercase()),
        ("Arguments", spec.args.join(" ")),
        ("Age", age(service.created_us, now_us())),
    ];
    lines.extend(service.reason.clone().map(|reason| ("Reason", reason)));
    lines.extend(service.migration.clone().map(|migration| ("Move", migration)));
    lines.extend(service.sleep.iter().flat_map(sleep::lines));
    if let Some(instance) = &service.instance {
        lines.push(("QEMU", format!("process {}, {}", instance.pid, instance.accel)));
        lines.push(("Refused", format!("{} frames from the guest", instance.refused_frames)));
    }
    let text: String =
        lines.iter().map(|(key, value)| format!("{:11} {value}\n", format!("{key}:"))).collect();
    print(&text);
    Ok(ExitCode::SUCCESS)
}

/// `logs`.
///
/// # Errors
/// There is no such service, or the stream broke off.
pub async fn logs(manager: &Client, name: &str, follow: bool) -> Done {
    let path = format!("/v1/services/{name}/log?follow={follow}");
    let answer = manager.send(Method::GET, &path, Body::empty()).await?;
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(ApiError::failed)?;
        if let Some(data) = frame.data_ref() {
            let mut out = std::io::stdout().lock();
            if out.write_all(data).and_then(|()| out.flush()).is_err() {
                break;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `stop`.
///
/// # Errors
/// There is no such service, or it still runs.
pub async fn stop(manager: &Client, name: &str, host_is_gone: Option<&str>, json: bool) -> Done {
    let gone = host_is_gone.map_or_else(String::new, |node| format!("?host_is_gone={node}"));
    let path = format!("/v1/services/{name}{gone}");
    manager.json::<()>(Method::DELETE, &path, &(), SHORT).await?;
    if json {
        print_json(&serde_json::json!({ "stopped": name }))?;
    } else {
        print(&format!("{name} stopped\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// `conns`.
///
/// # Errors
/// The service does not run.
pub async fn conns(manager: &Client, name: &str, json: bool) -> Done {
    let connections: Vec<ConnectionLine> =
        manager.get(&format!("/v1/services/{name}/connections")).await?;
    if json {
        print_json(&connections)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["LOCAL", "REMOTE", "STATE", "ROLE", "RECV-Q", "SEND-Q"]);
    for line in connections {
        table.row([
            line.local,
            line.remote,
            line.state,
            line.role,
            line.recv_queue.to_string(),
            line.send_queue.to_string(),
        ]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}
