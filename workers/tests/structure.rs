//! What ARCHITECTURE.md says is absent, is absent: which outside system each module may know, and which way imports point.

#![expect(clippy::unwrap_used, reason = "a source that cannot be read fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

/// An outside system and the only places (prefixes under `src/`) that may name it.
const HOMES: &[(&str, &[&str])] = &[
    (
        "sqlx::",
        &[
            "store/",
            "verify/",
            "app.rs",
            "sweep.rs",
            "objects/mod.rs",
            "objects/examples.rs",
            "objects/reaper.rs",
            "objects/ticket.rs",
            "relay",
            "admin",
            "transience.rs",
        ],
    ),
    ("sqlx::query", &["store/", "verify/"]),
    (
        "rdkafka::",
        &[
            "kafka",
            "gate/",
            "relay",
            "verify/",
            "register",
            "admin",
            "transience.rs",
        ],
    ),
    ("restate_sdk::", &["objects/", "app.rs"]),
    ("axum::", &["lifecycle.rs", "webhook.rs"]),
    ("reqwest::", &["restate_admin.rs", "register", "objects/"]),
    ("hyper::", &["provider/"]),
    ("lettre::", &["mail/", "config/mail.rs"]),
    ("askama::", &["mail/"]),
    ("rustls::", &["provider/"]),
    ("prometheus::", &["metrics.rs"]),
    ("std::env::", &["crash.rs"]),
    ("TerminalError::", &["objects/caller.rs"]),
];

/// Modules that never import each other: gate, objects, relay and webhook meet only in topics and tables, and the rules import
/// none of these.
const STRANGERS: &[(&str, &[&str])] = &[
    (
        "domain/",
        &[
            "store", "kafka", "gate", "objects", "relay", "provider", "mail", "metrics", "config", "error", "verify",
            "admin", "register",
        ],
    ),
    (
        "store/",
        &[
            "kafka", "gate", "objects", "relay", "mail", "verify", "admin", "register", "app",
        ],
    ),
    (
        "gate/",
        &[
            "store", "objects", "relay", "mail", "webhook", "verify", "admin", "register", "app", "domain",
        ],
    ),
    (
        "relay",
        &[
            "gate", "objects", "mail", "webhook", "verify", "admin", "register", "app", "domain",
        ],
    ),
    (
        "objects/",
        &[
            "kafka", "gate", "relay", "mail", "webhook", "verify", "admin", "register", "app",
        ],
    ),
    (
        "provider/",
        &[
            "store", "kafka", "gate", "objects", "relay", "mail", "verify", "admin", "register", "app", "domain",
        ],
    ),
    (
        "mail/",
        &[
            "kafka", "gate", "objects", "relay", "provider", "verify", "admin", "register", "app",
        ],
    ),
    (
        "webhook.rs",
        &[
            "store", "gate", "objects", "relay", "mail", "verify", "admin", "register", "app", "domain", "checkout",
        ],
    ),
    (
        "verify/",
        &[
            "domain", "store", "gate", "objects", "relay", "mail", "admin", "register", "app",
        ],
    ),
];

#[test]
fn each_outside_system_is_known_only_where_it_lives() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for (system, homes) in HOMES {
            if text.contains(system) && !homes.iter().any(|home| path.starts_with(home)) {
                wrong.push(format!("{path} names {system}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn imports_point_one_way() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for (module, strangers) in STRANGERS.iter().filter(|(module, _)| path.starts_with(module)) {
            for stranger in *strangers {
                if imports(&text, stranger) {
                    wrong.push(format!("{path} (in {module}) imports {stranger}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn imports(text: &str, module: &str) -> bool {
    let named = |list: &str| {
        list.split([',', '{', '}'])
            .any(|name| name.trim().split("::").next() == Some(module))
    };
    text.contains(&format!("crate::{module}::"))
        || text.lines().any(|line| {
            let line = line.trim();
            line.starts_with(&format!("use crate::{module};")) || line.strip_prefix("use crate::{").is_some_and(named)
        })
}

/// Every source file of the crate, by its path under `src/`.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 20, "the walk over {} found {files:?}", root.display());
    let read = |file: PathBuf| {
        let path = file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).unwrap();
        (
            path,
            text.lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect::<Vec<_>>()
                .join("\n"),
        )
    };
    files.into_iter().map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
