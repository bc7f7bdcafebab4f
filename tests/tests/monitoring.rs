//! Dashboards, rules, alerts and the runbook agree with each other and with the product's metrics; no servers are needed.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files fails")]

#[path = "monitoring/dashboards.rs"]
mod dashboards;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use holdfast::metrics::{Descriptor, Descriptors};
use holdfast_tests::kit::checkout;
use holdfast_tests::monitoring::{self, Rule, Selector, selectors};
use holdfast_tests::on_call;

/// More would not be looked at.
const MOST_ALERTS: usize = 20;

/// What Prometheus adds to every series.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];

/// What an entry of the runbook says, each part in a paragraph of its own.
const PARTS: [&str; 4] = ["**It means**", "**Look at**", "**Run**", "**Wake**"];

#[test]
fn the_dashboards_are_those_that_the_program_builds() {
    let update = std::env::var_os("UPDATE").is_some();
    for (name, dashboard) in dashboards::all() {
        let (path, built) = (monitoring::dashboards_folder().join(name), format!("{dashboard:#}\n"));
        if update {
            fs::write(&path, &built).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == built,
            "{}: run UPDATE=1 cargo test --workspace --test monitoring",
            path.display()
        );
    }
}

#[test]
fn rules_and_dashboards_name_metrics_labels_and_values_that_exist() {
    let described = Descriptors::default();
    let described = described.all();
    let rules = monitoring::rules().unwrap();
    let recorded: BTreeSet<_> = rules
        .iter()
        .filter(|rule| !rule.is_alert)
        .map(|rule| &rule.name)
        .collect();
    let mut seen = 0;
    for (place, expression) in expressions(&rules) {
        for selector in selectors(&expression) {
            let known = match () {
                () if selector.metric.starts_with("holdfast_") => fault(&selector, &described),
                () if selector.metric.starts_with("holdfast:") => {
                    (!recorded.contains(&selector.metric)).then(|| "no rule records it".to_owned())
                }
                () => continue,
            };
            seen += 1;
            assert_eq!(known, None, "{place} asks for {selector}");
        }
    }
    assert!(seen > 100, "{seen} selectors were found");
}

#[test]
fn every_metric_of_the_product_is_on_a_dashboard() {
    let questions = monitoring::questions().unwrap();
    let shown: BTreeSet<_> = questions
        .iter()
        .flat_map(|question| selectors(&question.expression))
        .map(|selector| selector.metric.trim_end_matches("_bucket").to_owned())
        .collect();
    let described = Descriptors::default();
    let hidden: Vec<_> = described
        .all()
        .iter()
        .map(|metric| metric.name)
        .filter(|name| !shown.contains(*name))
        .collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

#[test]
fn every_alert_has_its_entry_in_the_runbook_and_every_entry_its_alert() {
    let alerts = fs::read_to_string(monitoring::rules_folder().join("alerts.yml")).unwrap();
    let names = names(&monitoring::rules().unwrap());
    assert!(names.len() <= MOST_ALERTS, "{} alerts", names.len());
    let runbook = fs::read_to_string(checkout().join("docs/runbook.md")).unwrap();
    let (_, entries) = runbook.split_once("\n## Alerts\n").unwrap();
    let entries = entries.split("\n## ").next().unwrap();
    let entries: BTreeMap<_, _> = entries
        .split("\n### ")
        .skip(1)
        .filter_map(|entry| entry.split_once('\n'))
        .collect();
    let with_entry: BTreeSet<_> = entries.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(names, with_entry, "left: alerts; right: entries of the runbook");
    for name in &names {
        let link = format!("runbook_url: docs/runbook.md#{}\n", name.to_lowercase());
        assert!(alerts.contains(&link), "{name} lacks its {link}");
        let lacking: Vec<_> = PARTS
            .iter()
            .filter(|part| !entries[name.as_str()].contains(*part))
            .collect();
        assert!(lacking.is_empty(), "the entry of {name} lacks {lacking:?}");
    }
    for number in ["severity: ", "summary: "] {
        assert_eq!(alerts.matches(number).count(), names.len(), "{number}");
    }
}

#[test]
fn every_alert_has_its_section_in_the_night_on_call_and_every_section_its_alert() {
    let chapters = on_call::page().unwrap();
    let sections: Vec<_> = chapters.iter().flat_map(|chapter| &chapter.sections).collect();
    let with_section: Vec<_> = sections.iter().map(|section| section.alert.clone()).collect();
    let once: BTreeSet<_> = with_section.iter().cloned().collect();
    assert_eq!(with_section.len(), once.len(), "{with_section:?}");
    let names = names(&monitoring::rules().unwrap());
    assert_eq!(names, once, "left: alerts; right: sections of the page");
    for on_call::Section { alert, text } in sections {
        let entry = format!("**Find it** ([runbook](runbook.md#{}))", alert.to_lowercase());
        for part in ["**Break it**", &format!("\nfires {alert}\n"), &entry, "**Mend it**"] {
            assert!(text.contains(part), "the section of {alert} lacks {part:?}");
        }
    }
}

#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let files = ["alerts.test.yml", "objectives.test.yml"];
    let files = files.map(|file| fs::read_to_string(monitoring::rules_folder().join(file)).unwrap());
    let cases = files.concat();
    let cases: Vec<_> = cases
        .split("- alertname: ")
        .skip(1)
        .filter_map(|case| case.split_once('\n'))
        .map(|(name, case)| (name.to_owned(), !case.contains("exp_alerts: []")))
        .collect();
    for name in names(&monitoring::rules().unwrap()) {
        for fires in [true, false] {
            assert!(
                cases.contains(&(name.clone(), fires)),
                "{name} has no case with fires = {fires}"
            );
        }
    }
}

fn names(rules: &[Rule]) -> BTreeSet<String> {
    let alerts = rules.iter().filter(|rule| rule.is_alert);
    alerts.map(|alert| alert.name.clone()).collect()
}

/// Every expression in PromQL, with its place.
fn expressions(rules: &[Rule]) -> Vec<(String, String)> {
    let rules = rules.iter().map(|rule| (rule.name.clone(), rule.expression.clone()));
    let questions = monitoring::questions().unwrap().into_iter();
    let questions = questions.filter(|question| !question.is_sql);
    rules
        .chain(questions.map(|question| (question.place, question.expression)))
        .collect()
}

/// Why no series of the product can match a selector.
fn fault(selector: &Selector, described: &[&Descriptor]) -> Option<String> {
    let Selector { metric, matchers } = selector;
    let of_histogram = ["_bucket", "_count", "_sum"]
        .iter()
        .find_map(|ending| metric.strip_suffix(ending));
    let found = described.iter().find(|known| match known.is_histogram() {
        true => of_histogram == Some(known.name),
        false => known.name == metric,
    });
    let Some(known) = found else {
        return Some("there is no such metric".to_owned());
    };
    matchers.iter().find_map(|matcher| {
        let label = known.labels.iter().find(|label| label.name == matcher.label);
        match label {
            Some(label) if label.values.is_empty() => None,
            Some(label) => {
                let mut values = matcher.values().into_iter();
                let unknown = values.find(|value| !label.values.contains(value))?;
                Some(format!("{} is never {unknown}", label.name))
            }
            None if TARGET_LABELS.contains(&matcher.label.as_str()) => None,
            None if known.is_histogram() && matcher.label == "le" => None,
            None => Some(format!("it has no label {}", matcher.label)),
        }
    })
}
