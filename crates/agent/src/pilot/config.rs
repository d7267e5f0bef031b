//! Which settings a running engine must be told, and which wait for its next start; pure.
//!
//! Three maps: *wanted* (the view), *told* (what the engine was last started or reconfigured with), *applied* (what is in
//! force). A key waits for a restart exactly as long as applied and wanted differ.

use std::collections::BTreeMap;

use backlot_standard::config::{Apply, Setting};

/// Settings by key.
pub type Values = BTreeMap<String, String>;

/// Keys whose wanted value the engine was not told although it takes them up while it runs.
pub fn untold(told: &Values, wanted: &Values, settings: &BTreeMap<String, Setting>) -> Vec<String> {
    changed(told, wanted).filter(|key| is_live(key, settings)).cloned().collect()
}

/// What is in force, and what waits for a restart, after the engine was told the wanted settings (`Some`: the keys that
/// it said wait for a restart) or when there was nothing to tell it (`None`).
pub fn settle(
    applied: &Values,
    wanted: &Values,
    settings: &BTreeMap<String, Setting>,
    waiting: Option<&[String]>,
) -> (Values, Vec<String>) {
    let mut now = applied.clone();
    if let Some(waiting) = waiting {
        for key in changed(applied, wanted).filter(|key| is_live(key, settings) && !waiting.contains(key)) {
            match wanted.get(key) {
                Some(value) => drop(now.insert(key.clone(), value.clone())),
                None => drop(now.remove(key)),
            }
        }
    }
    // What the engine was started with waits for nothing, whatever it says: it would be restarted for it for ever.
    let mut pending: Vec<String> = changed(&now, wanted).cloned().collect();
    pending.sort();
    (now, pending)
}

fn changed<'a>(before: &'a Values, after: &'a Values) -> impl Iterator<Item = &'a String> {
    let removed = before.keys().filter(|key| !after.contains_key(*key));
    after.keys().chain(removed).filter(|key| before.get(*key) != after.get(*key))
}

fn is_live(key: &str, settings: &BTreeMap<String, Setting>) -> bool {
    settings.get(key).is_some_and(|setting| setting.apply == Apply::Live)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backlot_standard::config::SettingType;

    fn map(text: &str) -> Values {
        text.split_whitespace().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    fn settings() -> BTreeMap<String, Setting> {
        let setting = |apply| Setting {
            kind: SettingType::String,
            description: String::new(),
            apply,
            default: None,
            example: None,
            minimum: None,
            maximum: None,
            allowed: vec![],
            raise_first_on: None,
        };
        let names = [("live", Apply::Live), ("warm", Apply::Live), ("cold", Apply::Restart)];
        names.into_iter().map(|(name, apply)| (name.to_owned(), setting(apply))).collect()
    }

    #[test]
    fn only_live_keys_are_told() {
        let told = map("live=1 cold=1 warm=1");
        assert_eq!(untold(&told, &map("live=2 cold=2 unknown=1"), &settings()), ["live", "warm"]);
        assert!(untold(&told, &map("live=1 cold=2 warm=1"), &settings()).is_empty());
    }

    #[test]
    fn a_key_waits_as_long_as_it_differs_from_what_is_in_force() {
        let applied = map("live=1 cold=1");
        let cases = [
            ("told all", "live=2 cold=1", Some(""), "live=2 cold=1", ""),
            ("a cold key", "live=1 cold=2", None, "live=1 cold=1", "cold"),
            ("both", "live=2 cold=2", Some(""), "live=2 cold=1", "cold"),
            ("the engine says that a live key waits", "live=2 cold=1", Some("live"), "live=1 cold=1", "live"),
            ("the engine says that what it has waits", "live=1 cold=1", Some("cold"), "live=1 cold=1", ""),
            ("reverted", "live=1 cold=1", None, "live=1 cold=1", ""),
            ("removed", "cold=1", Some(""), "cold=1", ""),
            ("added cold", "live=1 cold=1 unknown=1", None, "live=1 cold=1", "unknown"),
        ];
        for (name, wanted, waiting, now, pending) in cases {
            let waiting: Option<Vec<String>> = waiting.map(|keys| keys.split_whitespace().map(str::to_owned).collect());
            let found = settle(&applied, &map(wanted), &settings(), waiting.as_deref());
            let pending: Vec<String> = pending.split_whitespace().map(str::to_owned).collect();
            assert_eq!(found, (map(now), pending), "{name}");
        }
    }
}
