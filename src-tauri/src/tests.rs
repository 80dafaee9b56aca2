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
    let handler: Vec<&str> = handler
        .split(',')
        .filter_map(|name| name.trim().strip_prefix("commands::")?.split_once("::"))
        .map(|(_, name)| name)
        .collect();
    assert_eq!(manifest, handler);

    let mut granted_to_any = std::collections::BTreeSet::new();
    let capabilities = [
        ("main", include_str!("../capabilities/main.json")),
        ("popup", include_str!("../capabilities/popup.json")),
    ];
    for (window, text) in capabilities {
        let capability = json(text);
        assert_eq!(capability["windows"], serde_json::json!([window]));
        let permissions = capability["permissions"].as_array().expect("permissions");
        let granted = permissions
            .iter()
            .filter_map(|permission| permission.as_str()?.strip_prefix("allow-"))
            .map(|name| name.replace('-', "_"));
        granted_to_any.extend(granted.map(|name| (name, window)));
        let mut of_plugins = permissions.iter().filter_map(Value::as_str).filter(|name| name.contains(':'));
        assert!(of_plugins.all(|name| name.starts_with("core:event:")), "nothing of the system is granted");
    }
    for command in &manifest {
        let is_granted = |window| granted_to_any.contains(&(command.clone(), window));
        assert!(is_granted("main") || is_granted("popup"), "{command} is granted to no window");
        // The window over the clipboard opens and saves nothing.
        let is_for_popup = command.starts_with("popup_")
            || ["application_state", "read_settings", "resolve_completion"].contains(&command.as_str());
        assert_eq!(is_granted("popup"), is_for_popup, "{command}");
        assert_eq!(is_granted("main"), !command.starts_with("popup_"), "{command}");
    }
    assert!(granted_to_any.iter().all(|(command, _)| manifest.contains(command)));
}

#[test]
fn arguments_are_told_apart() {
    let start = |arguments: &[&str]| {
        super::Start::of(arguments.iter().map(|&argument| argument.to_owned()), std::path::Path::new("/home"))
    };
    assert_eq!(start(&[]), super::Start::default());
    assert_eq!(start(&["a.py"]).path.as_deref(), Some(std::path::Path::new("/home/a.py")));
    assert_eq!(start(&["/etc/x"]).path.as_deref(), Some(std::path::Path::new("/etc/x")));
    assert!(start(&["--clipboard"]).clipboard && start(&["--hidden"]).hidden);
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
    assert_eq!(security["capabilities"], serde_json::json!(["main", "popup"]));
    assert_eq!(config["app"]["withGlobalTauri"], false);
}
