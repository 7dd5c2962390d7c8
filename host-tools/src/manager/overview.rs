//! The present state of all hosts and services, for those who look. However many look, the agents are asked
//! once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::state::Manager;
use crate::api::{ApiError, Overview, SeenService, Service, ServiceState, now_us};

/// Longest time a look waits for the number of a service's connections.
const COUNT_LIMIT: Duration = Duration::from_secs(2);

/// The last look and when it began. Whoever takes a new one holds it, the others wait for its result.
#[derive(Debug, Default)]
pub struct LastLook(Mutex<Option<(Instant, Arc<Overview>)>>);

impl Manager {
    /// Hosts and services as they are, not older than `since`.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn overview(self: &Arc<Self>, since: Instant) -> Result<Arc<Overview>, ApiError> {
        let mut last = self.looked.0.lock().await;
        if let Some((begun, overview)) = last.as_ref()
            && *begun >= since
        {
            return Ok(Arc::clone(overview));
        }
        let begun = Instant::now();
        let before = last.as_ref().map(|(_, overview)| known_counts(overview)).unwrap_or_default();
        let mut counts = JoinSet::new();
        for service in self.services().await? {
            let (this, before) = (Arc::clone(self), before.get(&service.spec.id).copied());
            counts.spawn(async move {
                let connections = this.count(&service).await;
                let moves = service.state == ServiceState::Migrating;
                let connections = connections.or(before.filter(|_| moves));
                SeenService { service, connections }
            });
        }
        let mut services = counts.join_all().await;
        services.sort_by(|a, b| a.service.spec.name.cmp(&b.service.spec.name));
        let overview = Overview { now_us: now_us(), nodes: self.nodes.list(), services };
        let overview = Arc::new(overview);
        *last = Some((begun, Arc::clone(&overview)));
        Ok(overview)
    }

    /// The number of a service's connections. One that moves has better things to do than to be counted.
    async fn count(&self, service: &Service) -> Option<u64> {
        if let Some(sleep) = &service.sleep {
            return Some(u64::from(sleep.connections));
        }
        if service.state != ServiceState::Running {
            return None;
        }
        let agent = self.nodes.client(service.node.as_deref()?).ok()?;
        let path = format!("/v1/instances/{}/connection-count", service.spec.name);
        agent.json(Method::GET, &path, &(), COUNT_LIMIT).await.ok().flatten()
    }
}

/// What is known of connections, by id of the service.
fn known_counts(overview: &Overview) -> BTreeMap<String, u64> {
    let counted = overview.services.iter();
    counted.filter_map(|seen| Some((seen.service.spec.id.clone(), seen.connections?))).collect()
}
