//! Routes of databases with a leader, written by every operator replica, so that they do not wait for the operator's own
//! leader. The guard is in `backlot_core::routes`: lineage and epoch on the slice, only ever upwards.

use std::time::Duration;

use backlot_core::{routes, validate};

use crate::agents::Agents;
use crate::apply::ApplyError;
use crate::apply::Writer;
use crate::cache::Key;
use crate::database::Operator;

/// Pause before routes are looked at again without news.
const AGAIN: Duration = Duration::from_mins(1);

/// Brings one Database's routes to what its members report.
pub async fn pass<A: Agents>(operator: &Operator<A>, key: &Key) -> Result<Option<Duration>, ApplyError> {
    let Some(snapshot) = operator.caches.snapshot(key, &operator.agents, operator.facts(0)) else { return Ok(None) };
    if snapshot.database.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    // Also with a refused spec: its leader may move all the same.
    let Some(wanted) = validate::routed(&snapshot) else { return Ok(Some(AGAIN)) };
    if snapshot.objects.services.is_empty() {
        return Ok(Some(AGAIN));
    }
    let writer = Writer::new(operator.client.clone());
    for write in routes::routes(&snapshot, &wanted) {
        match writer.write(&snapshot.database, &write).await {
            // Another replica was quicker; its write comes back as news.
            Err(ApplyError::Stale { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(AGAIN))
}
