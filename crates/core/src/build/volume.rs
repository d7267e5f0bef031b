//! Claims of members. They have no owner: what becomes of them is decided by `deletionPolicy` alone.

use backlot_api::database::MemberRecord;
use backlot_api::labels::VOLUME;
use serde_json::json;

use super::{Kind, Object, member_labels};
use crate::validate::{Wanted, WantedComponent};

/// The claim for one volume of a member.
pub fn claim(
    wanted: &Wanted,
    component: &WantedComponent,
    member: &MemberRecord,
    shard: u32,
    volume: &str,
    name: &str,
) -> Object {
    let mut labels = member_labels(wanted, &component.component.name, shard, member.ordinal);
    labels[VOLUME] = json!(volume);
    let mut body = json!({
        "metadata": {"namespace": wanted.namespace, "labels": labels},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": component.storage_bytes.to_string()}},
        },
    });
    if let Some(class) = &wanted.storage_class {
        body["spec"]["storageClassName"] = json!(class);
    }
    Object::new(Kind::Claim, name, body)
}
