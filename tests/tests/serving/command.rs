//! What the command logs and refuses, and chat templates that are exported.

use crate::server::Server;
use ratplus_tests::http::{ask, post};
use ratplus_tests::{golden_case, run, texts};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Output;

struct Package(tempfile::TempDir);

impl Package {
    fn new(flags: &[&str]) -> Self {
        let package = Self(tempfile::tempdir().unwrap());
        let exported = package.export(flags);
        assert!(exported.status.success(), "{}", texts(&exported).1);
        package
    }

    fn export(&self, flags: &[&str]) -> Output {
        let case = golden_case("kjv_d16w64i4");
        let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into()];
        args.extend(["-o".into(), self.dir().into(), "--config".into()]);
        args.push(case.file("config.json").into());
        args.extend(
            "--max-seq-len 512 --prefill-lengths 16 --batch 2"
                .split(' ')
                .map(Into::into),
        );
        args.extend(["--tokenizer".into(), case.file("tokenizer.json").into()]);
        args.extend(flags.iter().map(Into::into));
        run(args)
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("kjv")
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.into_os_string().into_string().unwrap()
    }
}

/// A server of it, on a backend that starts at once.
fn serve(dir: &Path, flags: &[&str]) -> Server {
    Server::of(dir, ["--backend", "tract"].iter().chain(flags))
}

/// Ends it by that signal; what it wrote.
fn end(server: Server, signal: &str) -> String {
    server.signal(signal);
    let (status, log) = server.ended();
    assert_eq!(status.code(), Some(0), "{log}");
    log
}

const SECRET: &str = "Forasmuch";

#[test]
fn a_server_ends_by_a_signal_and_logs_a_line_a_request_without_its_text() {
    let package = Package::new(&[]);
    let keys = package.file("keys.txt", "top-secret\n");
    let asked = json!({"prompt": SECRET, "max_tokens": 3, "temperature": 0, "model": "kjv"});
    let server = serve(
        &package.dir(),
        &["--log-format", "json", "--api-key-file", &keys],
    );
    assert_eq!(post(server.address, "/v1/completions", &asked).status, 401);
    let headers = "authorization: Bearer top-secret\r\nx-request-id: mine\r\n";
    let body = asked.to_string();
    let answer = ask(
        server.address,
        "POST",
        "/v1/completions",
        headers,
        body.as_bytes(),
    );
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3);
    let log = end(server, "-TERM");
    let lines = log.lines().filter(|line| line.starts_with('{'));
    let lines: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let line = lines.iter().find(|line| line["id"] == "mine").unwrap();
    assert_eq!(
        (&line["status"], &line["new_tokens"]),
        (&json!(200), &json!(3))
    );
    assert_eq!(
        (line["ended"].as_str(), line["answer"].as_str()),
        (Some("length"), Some("complete"))
    );
    assert!(lines.iter().any(|line| line["status"] == 401));
    for hidden in [
        SECRET,
        "top-secret",
        "keys.txt",
        answer.json()["choices"][0]["text"].as_str().unwrap(),
    ] {
        assert!(!log.contains(hidden), "{hidden}: {log}");
    }
    // With what is said, for who asks.
    let server = serve(&package.dir(), &["--log-prompts", "--log-format", "json"]);
    let tokens = post(server.address, "/tokenize", &json!({"prompt": SECRET})).json();
    let answer = post(server.address, "/v1/completions", &asked).json();
    let log = end(server, "-INT");
    let lines = log.lines().filter(|line| line.starts_with('{'));
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.find(|line| !line["text"].is_null()).unwrap();
    assert_eq!(line["text"], answer["choices"][0]["text"]);
    let prompts = line["prompt"].as_str().unwrap().replace(' ', "");
    assert_eq!(prompts, format!("[{}]", tokens["tokens"]));
}

#[test]
fn what_cannot_be_served_is_told_and_ends_with_2() {
    let package = Package::new(&[]);
    let dir = package.dir().into_os_string().into_string().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = port.local_addr().unwrap().port().to_string();
    let empty = package.file("empty.txt", "# none\n");
    for (args, reason) in [
        (
            vec!["serve", &dir, "--port", &taken],
            "cannot listen: Address already in use",
        ),
        (
            vec!["serve", "no/such/folder", "--port", "0"],
            "no/such/folder",
        ),
        (
            vec!["serve", &dir, "--port", "0", "--backend", "abacus"],
            "abacus",
        ),
        (
            vec!["serve", &dir, "--api-key-file", &empty],
            "expected a key a line, found none",
        ),
        (
            vec!["serve", &dir, "--api-key-file", "none.txt"],
            "none.txt: No such file",
        ),
        (
            vec!["serve", &dir, "--prefix-cache", "much"],
            "expected bytes",
        ),
    ] {
        let output = run(&args);
        let error = texts(&output).1;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(reason), "{args:?}: {error}");
    }
}

#[test]
fn a_chat_template_is_checked_at_export_and_used_by_the_server() {
    let package = Package(tempfile::tempdir().unwrap());
    let template =
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}";
    let config = json!({"bos_token": {"content": "<s>"}, "chat_template": [
        {"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]});
    let jinja = package.file("chat.jinja", &template.replace("{{ bos_token }}", ""));
    let config = package.file("tokenizer_config.json", &config.to_string());
    let bad = package.file("bad.jinja", "{% for %}");
    let none = package.file("none.json", "{}");
    for (file, reason) in [
        (&bad, "line 1: syntax error"),
        (&none, "found JSON with none"),
        (&"none.jinja".to_owned(), "No such file"),
    ] {
        let refused = package.export(&["--chat-template", file]);
        let error = texts(&refused).1;
        assert_eq!(refused.status.code(), Some(2), "{error}");
        assert!(
            error.contains("--chat-template") && error.contains(reason),
            "{error}"
        );
        assert!(!package.dir().exists());
    }
    for (file, bos) in [(&jinja, ""), (&config, "<s>")] {
        let exported = package.export(&["--chat-template", file]);
        assert!(exported.status.success(), "{}", texts(&exported).1);
        let stored = std::fs::read_to_string(package.dir().join("chat_template.jinja")).unwrap();
        assert!(
            stored.ends_with("[{{ m.role }}] {{ m.content }}{% endfor %}"),
            "{stored}"
        );
        let server = serve(&package.dir(), &[]);
        let messages = json!([{"role": "user", "content": "Who is he?"}]);
        let chat = json!({"messages": messages, "max_tokens": 2, "temperature": 0});
        let chat = post(server.address, "/v1/chat/completions", &chat);
        let text =
            json!({"prompt": format!("{bos}[user] Who is he?"), "max_tokens": 2, "temperature": 0});
        let text = post(server.address, "/v1/completions", &text);
        assert_eq!(
            chat.json()["choices"][0]["message"]["content"],
            text.json()["choices"][0]["text"],
            "{} {}",
            chat.body,
            text.body
        );
        end(server, "-TERM");
    }
    // One changed byte of it is found.
    std::fs::write(package.dir().join("chat_template.jinja"), "{{ 1 }}").unwrap();
    let output = run([
        OsString::from("serve"),
        package.dir().into(),
        "--port".into(),
        "0".into(),
    ]);
    let error = texts(&output).1;
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("chat_template.jinja: expected"), "{error}");
}
