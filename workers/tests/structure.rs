//! What ARCHITECTURE.md says is absent, is absent: which outside system each module may know, and which way imports point.

#![expect(clippy::unwrap_used, reason = "a source that cannot be read fails the test")]

use std::collections::{BTreeMap, BTreeSet};
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
            "doctor/postgres.rs",
            "postgres.rs",
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
            "doctor/kafka.rs",
            "transience.rs",
            // Has the client library check its own properties.
            "config/kafka_security.rs",
        ],
    ),
    ("restate_sdk::", &["objects/", "app.rs"]),
    ("axum::", &["lifecycle.rs", "listener/", "webhook.rs"]),
    ("reqwest::", &["restate_admin.rs", "register", "objects/"]),
    // The SDK's endpoint as a service of hyper's is at home in `objects`.
    (
        "hyper::",
        &[
            "provider/",
            "doctor/disks.rs",
            "http.rs",
            "listener/",
            "objects/mod.rs",
            "objects/engine.rs",
            "traces/",
        ],
    ),
    ("lettre::", &["mail/", "config/mail.rs"]),
    ("minijinja::", &["mail/"]),
    (
        "rustls::",
        &["http.rs", "listener/", "restate_admin.rs", "tls.rs", "transience.rs"],
    ),
    ("prometheus::", &["metrics.rs"]),
    ("prost::", &["traces/"]),
    // What is printed or logged goes through `printable`, as the log does in `logs.rs`.
    ("tracing_subscriber::fmt", &["logs.rs"]),
    ("std::io::stdout", &["admin", "app.rs"]),
    ("std::io::stderr", &["logs.rs", "app.rs"]),
    // A Kafka client is made with a context of ours: the library's own calls the end of a partition an error.
    ("config.create()", &[]),
    ("DefaultClientContext", &[]),
    // The tests of secrets put them into files; three tests can write what they compare.
    (
        "std::env::",
        &[
            "crash.rs",
            "config/secret.rs",
            "config/chart.rs",
            "plan/report.rs",
            "register/strimzi.rs",
        ],
    ),
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
fn no_property_that_a_kafka_client_sets_is_left_to_operators() {
    let settings =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/kafka_security.rs")).unwrap();
    let left_open = [
        "client.id",
        "socket.nagle.disable",
        "socket.keepalive.enable",
        "reconnect.backoff.max.ms",
    ];
    let mut set = BTreeSet::new();
    for (path, text) in sources() {
        let is_client = ["kafka", "gate/", "relay/", "register/topics.rs"];
        if is_client.iter().any(|home| path.starts_with(home)) {
            let names = text.split(".set(").skip(1);
            let names = names.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
            set.extend(names.filter(|name| name.contains('.')).map(str::to_owned));
        }
    }
    let is_refused = |name: &str| settings.contains(&format!("\"{name}\""));
    let open: Vec<_> = set.iter().filter(|name| !is_refused(name)).collect();
    assert!(set.len() > 20, "{set:?}");
    assert!(open.iter().all(|name| left_open.contains(&name.as_str())), "{open:?}");
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

#[test]
fn imports_form_no_cycle() {
    let sources: BTreeMap<String, String> = sources()
        .into_iter()
        .map(|(path, text)| (module(&path), text))
        .collect();
    let modules: BTreeSet<&str> = sources.keys().map(String::as_str).collect();
    // By folder: who among its members imports whom. A folder and what lies in it are one module here.
    let mut folders: BTreeMap<String, Graph> = BTreeMap::new();
    for (importer, text) in &sources {
        for imported in imported(importer, text, &modules) {
            let (folder, from, to) = siblings(importer, &imported);
            if from != to && !from.is_empty() && !to.is_empty() {
                folders.entry(folder).or_default().entry(from).or_default().insert(to);
            }
        }
    }
    let cycles: Vec<String> = folders
        .iter()
        .filter_map(|(folder, graph)| Some(format!("in src/{folder}: {}", cycle(graph)?.join(" -> "))))
        .collect();
    assert!(folders[""].len() > 10, "the graph misses imports: {folders:?}");
    assert!(cycles.is_empty(), "{cycles:#?}");
}

/// The names that several types have, and why. Each is read with its module: `store::Error`, `ticket::State`.
const SHARED_NAMES: &[(&str, &str)] = &[
    ("Error", "a module's errors"),
    ("Settings", "what a part is given at its start"),
    ("State", "the states of a ticket, a checkout, a payment"),
    ("Input", "what the rules of a ticket, of a user take"),
    ("Checkout", "a section of settings has the name of what it sets"),
    ("Provider", "a section of settings has the name of what it sets"),
    ("User", "the examples have a table of their own"),
];

#[test]
fn a_type_shares_its_name_with_no_other() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in sources() {
        let text = text.split("#[cfg(test)]").next().unwrap();
        for name in text.lines().filter_map(declared) {
            places.entry(name.to_owned()).or_default().push(path.clone());
        }
    }
    assert!(places.len() > 100, "the walk misses types: {places:?}");
    let shared: BTreeSet<&str> = SHARED_NAMES.iter().map(|(name, _)| *name).collect();
    places.retain(|_, places| places.len() > 1);
    let gone: Vec<_> = shared.iter().filter(|name| !places.contains_key(**name)).collect();
    assert!(gone.is_empty(), "no longer shared: {gone:?}");
    places.retain(|name, _| !shared.contains(name.as_str()));
    assert!(places.is_empty(), "give each a noun of its own: {places:#?}");
}

/// The type that a line declares, if modules beside its own can use it.
fn declared(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let declaration = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
    let kinds = ["struct ", "enum ", "trait ", "type "];
    let name = kinds.iter().find_map(|kind| declaration.strip_prefix(kind))?;
    name.split(|letter: char| !letter.is_alphanumeric()).next()
}

/// What `docs/adding-an-event.md` follows, and where: text, or the path of a fixture.
const FOLLOWED: &[(&[&str], &[&str])] = &[
    (
        &["ProfileChanged", "ProfileField", "profile.changed"],
        &[
            "schemas/src",
            "schemas/tests",
            "schemas/fixtures",
            "workers/src",
            "migrations",
        ],
    ),
    (
        &[" language", "(language", ".language"],
        &[
            "workers/src/domain",
            "workers/src/store",
            "workers/src/objects",
            "migrations",
        ],
    ),
];

#[test]
fn the_page_on_adding_an_event_names_every_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/adding-an-event.md")).unwrap();
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let named: BTreeSet<String> = rows.map(|(file, _)| file.to_owned()).collect();
    let mut naming = BTreeSet::new();
    for (words, folders) in FOLLOWED {
        for folder in *folders {
            let mut files = Vec::new();
            collect(&root.join(folder), &["rs", "sql", "json"], &mut files);
            for file in files {
                let path = file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                let text = fs::read_to_string(&file).unwrap().replace("language plpgsql", "");
                if words.iter().any(|word| text.contains(word) || path.contains(word)) {
                    naming.insert(path);
                }
            }
        }
    }
    assert!(naming.len() > 10, "{naming:?}");
    assert_eq!(named, naming, "left: on the page; right: in the tree");
}

#[test]
fn the_page_on_security_names_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let mut files = Vec::new();
    for folder in ["workers/src", "tests/tests"] {
        collect(&root.join(folder), &["rs"], &mut files);
    }
    let code: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    // The name of a test has many words; that of a setting or a metric few.
    let named = page.split('`').skip(1).step_by(2);
    let named: BTreeSet<_> = named
        .filter(|name| name.matches('_').count() >= 4 && !name.contains(' '))
        .collect();
    assert!(named.len() > 25, "{named:?}");
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !code.contains(&format!("fn {name}(")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

type Graph = BTreeMap<String, BTreeSet<String>>;

/// The path of the module that a source file is, such as `store::commit`.
fn module(path: &str) -> String {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    if path == "lib" { String::new() } else { path }
}

/// The modules that a source names, in `use` and elsewhere, as far as they lie in this crate.
fn imported(importer: &str, text: &str, modules: &BTreeSet<&str>) -> BTreeSet<String> {
    let mut paths = Vec::new();
    for statement in text.split(';') {
        if let Some(tree) = statement.rsplit_once("use ").map(|(_, tree)| tree)
            && !tree.contains(['=', '('])
        {
            flatten("", tree, &mut paths);
        }
    }
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    paths.extend(words.filter(|word| word.contains("::")).map(str::to_owned));
    let paths = paths.iter().filter_map(|path| absolute(importer, path));
    paths
        .filter_map(|path| {
            // What a path names lies in the longest module that begins it.
            let ends = path.match_indices("::").map(|(end, _)| end).chain([path.len()]);
            let known = ends.map(|end| &path[..end]).filter(|module| modules.contains(module));
            known.last().map(str::to_owned)
        })
        .collect()
}

/// The paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn flatten(before: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    match tree.split_once('{') {
        None => paths.push(format!("{before}{}", tree.split(" as ").next().unwrap_or(tree))),
        Some((root, branches)) => {
            let branches = branches.trim_end().trim_end_matches('}');
            let (mut depth, mut start) = (0, 0);
            for (place, letter) in branches.char_indices().chain([(branches.len(), ',')]) {
                match letter {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        flatten(&format!("{before}{root}"), &branches[start..place], paths);
                        start = (place + 1).min(branches.len());
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A path from the crate's root on; none when it leads out of the crate.
fn absolute(importer: &str, path: &str) -> Option<String> {
    if let Some(path) = path.strip_prefix("crate::") {
        return Some(path.to_owned());
    }
    let mut here: Vec<&str> = importer.split("::").collect();
    let mut path = path.strip_prefix("self::").unwrap_or(path);
    let mut inside = path.len() != path.trim_start_matches("super::").len();
    while let Some(rest) = path.strip_prefix("super::") {
        here.pop();
        path = rest;
        inside = true;
    }
    // `child::Thing` without a prefix names a child of the importing module, if it has one of that name.
    let here = here.join("::");
    Some(if here.is_empty() {
        path.to_owned()
    } else {
        format!("{here}::{path}")
    })
    .filter(|_| inside || !path.is_empty())
}

/// The folder that two modules have in common, and its members that they are or lie in; empty for the folder itself.
fn siblings(one: &str, other: &str) -> (String, String, String) {
    let (one, other): (Vec<&str>, Vec<&str>) = (one.split("::").collect(), other.split("::").collect());
    let common = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
    let member = |path: &[&str]| path.get(common).copied().unwrap_or_default().to_owned();
    (one[..common].join("/"), member(&one), member(&other))
}

/// One cycle of the graph, from a module back to itself.
fn cycle(graph: &Graph) -> Option<Vec<String>> {
    fn visit<'a>(node: &'a str, graph: &'a Graph, path: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) -> bool {
        if path.contains(&node) {
            path.push(node);
            return true;
        }
        if done.contains(node) {
            return false;
        }
        path.push(node);
        if graph
            .get(node)
            .is_some_and(|next| next.iter().any(|next| visit(next, graph, path, done)))
        {
            return true;
        }
        path.pop();
        done.insert(node);
        false
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|node| {
        let mut path = Vec::new();
        visit(node, graph, &mut path, &mut done).then(|| {
            let start = path.iter().position(|module| Some(module) == path.last()).unwrap_or(0);
            path[start..].iter().map(|module| (*module).to_owned()).collect()
        })
    })
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
    collect(&root, &["rs"], &mut files);
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

fn collect(folder: &Path, extensions: &[&str], files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, extensions, files);
        } else if extensions
            .iter()
            .any(|extension| path.extension().is_some_and(|of| of == *extension))
        {
            files.push(path);
        }
    }
}
