//! `[profile.NAME]`: launch profiles of one's own, written as a built-in one and what differs.
//!
//! The settings and their meaning are those of [`Profile`]; this file only says which are given. Each change is tried by itself
//! when the file is checked, so that an error names the line that is wrong, and all of them come at once.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sluice_policy::profile::{Profile, ProfileError, builtin, builtins};

use super::Config;

/// One profile as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfileTable {
    /// The built-in profile that it starts from.
    pub base: String,
    /// What differs: settings of [`Profile`] with their values, `"engine-default"` among them.
    #[serde(flatten)]
    pub changes: Map<String, Value>,
}

impl ProfileTable {
    /// The profile that comes of it; `None` if there is no such base.
    ///
    /// # Errors
    /// A change that isn't a setting of a profile, or a value that isn't one of the setting.
    pub fn resolve(&self, name: &str) -> Option<Result<Profile, ProfileError>> {
        self.with(name, self.changes.clone())
    }

    /// What each change would be refused for, if it stood alone.
    pub(super) fn refusals(&self, name: &str) -> Vec<(&str, ProfileError)> {
        let alone = |(key, value): (&String, &Value)| Map::from_iter([(key.clone(), value.clone())]);
        self.changes
            .iter()
            .filter_map(|change| Some((change.0.as_str(), self.with(name, alone(change))?.err()?)))
            .collect()
    }

    fn with(&self, name: &str, changes: Map<String, Value>) -> Option<Result<Profile, ProfileError>> {
        Some(Profile::derived(name, builtin(&self.base)?, changes))
    }
}

impl Config {
    /// The profile of that name: built in, or a `[profile.NAME]` of this file. `None` also for a table that checking refuses.
    pub fn profile(&self, name: &str) -> Option<Profile> {
        match builtin(name) {
            Some(profile) => Some(profile.clone()),
            None => self.profile.get(name)?.resolve(name)?.ok(),
        }
    }

    /// The names that a backend may give.
    pub fn profile_names(&self) -> Vec<&str> {
        let own = self.profile.keys().map(String::as_str);
        builtins()
            .iter()
            .map(|profile| profile.name.as_str())
            .chain(own)
            .collect()
    }
}
