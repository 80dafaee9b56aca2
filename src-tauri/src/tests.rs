//! The rules of the shell: what a window may do is written down once and granted exactly.

use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// Commands in the build manifest, in the handler and in the capability are the same.
#[test]
fn every_command_is_listed_and_granted() {
    let quoted = |text: &str, start: &str| -> Vec<String> {
        let list = text.split_once(start).expect("the list").1.split_once("];").expect("its end").0;
        list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let manifest = quoted(include_str!("../build.rs"), "COMMANDS: &[&str] = &[");
    let handler = include_str!("main.rs").split_once("generate_handler![").expect("the handler").1;
    let handler = handler.split_once(']').expect("its end").0;
    let handler: Vec<&str> =
        handler.split(',').filter_map(|name| name.trim().strip_prefix("commands::")).collect();
    assert_eq!(manifest, handler);
    assert!(manifest.len() <= 16, "few commands, each checked");

    let capability = json(include_str!("../capabilities/main.json"));
    assert_eq!(capability["windows"], serde_json::json!(["main"]));
    let permissions = capability["permissions"].as_array().expect("permissions");
    let granted: Vec<String> = permissions
        .iter()
        .filter_map(|permission| permission.as_str()?.strip_prefix("allow-"))
        .map(|name| name.replace('-', "_"))
        .collect();
    assert_eq!(granted, manifest);
    let of_plugins = permissions.iter().filter_map(Value::as_str).filter(|name| name.contains(':'));
    assert!(
        of_plugins.clone().all(|name| name.starts_with("core:event:")),
        "nothing of the system is granted"
    );
}

/// The window goes nowhere else, not even to what listens on this machine.
#[test]
fn navigation_stays_at_home() {
    let is_ours = |url: &str| super::is_ours(&url.parse().expect("a URL"));
    let home = if cfg!(windows) { "http://tauri.localhost/" } else { "tauri://localhost/" };
    assert!(is_ours(home) && is_ours(&format!("{home}index.html")));
    let elsewhere = [
        "http://localhost/",
        "https://localhost/",
        "http://localhost:8012/",
        "http://127.0.0.1/",
        "tauri://elsewhere/",
        "tauri://localhost:80/",
        "file:///etc/passwd",
        "https://example.org/",
        "data:text/html,x",
    ];
    assert!(elsewhere.iter().all(|url| !is_ours(url)));
}

/// The window loads nothing from outside and runs no code that did not ship with it.
#[test]
fn the_content_policy_is_strict() {
    let config = json(include_str!("../tauri.conf.json"));
    let security = &config["app"]["security"];
    let policy = security["csp"].as_object().expect("a policy");
    assert_eq!(policy["default-src"], "'none'");
    assert_eq!(policy["script-src"], "'self'");
    for (directive, sources) in policy {
        let sources = sources.as_str().expect("sources");
        assert!(!sources.contains("unsafe"), "{directive}: {sources}");
        assert!(!sources.contains('*'), "{directive}: {sources}");
        let remote = sources.split(' ').any(|s| s.contains("://") && s != "http://ipc.localhost");
        assert!(!remote, "{directive}: {sources}");
    }
    assert_eq!(security["freezePrototype"], true);
    assert_eq!(security["dangerousDisableAssetCspModification"], Value::Null);
    assert_eq!(security["capabilities"], serde_json::json!(["main"]));
    assert_eq!(config["app"]["withGlobalTauri"], false);
}
