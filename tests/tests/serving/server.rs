//! A package, and a server of it in a process of its own.

use ratplus_tests::http::{becomes, get, post};
use ratplus_tests::{golden_case, ratplus, run, texts};
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

pub const SLOTS: usize = 3;
pub const VOCAB: u32 = 2048;

/// The package, exported once: a trained model with all logits.
pub fn package() -> PathBuf {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    let export = || {
        let (dir, case) = (tempfile::tempdir().unwrap(), golden_case("kjv_d16w64i4"));
        let mut args: Vec<OsString> = vec!["export".into(), case.checkpoint().into(), "-o".into()];
        args.extend([dir.path().join("kjv").into(), "--config".into()]);
        args.extend([case.file("config.json").into(), "--tokenizer".into()]);
        args.push(case.file("tokenizer.json").into());
        let slots = SLOTS.to_string();
        let flags = "--max-seq-len 2048 --prefill-lengths 16,64 --logits all --batch";
        args.extend(flags.split(' ').chain([slots.as_str()]).map(OsString::from));
        let result = run(args);
        assert!(result.status.success(), "{}", texts(&result).1);
        dir
    };
    DIR.get_or_init(export).path().join("kjv")
}

/// A server; it is killed when this is dropped.
pub struct Server {
    pub address: SocketAddr,
    child: Child,
    log: Arc<Mutex<String>>,
    reading: Option<JoinHandle<()>>,
}

impl Server {
    /// `ratplus serve` of the package with these flags, once it is ready.
    pub fn start(flags: &str) -> Self {
        Self::of(&package(), flags.split_whitespace())
    }

    /// The same of another package.
    pub fn of(package: &Path, flags: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let server = Self::listening(package, flags);
        server.eventually("ready", || get(server.address, "/ready").status == 200);
        server
    }

    /// The same, once it listens.
    pub fn listening(package: &Path, flags: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let mut child = Command::new(ratplus())
            .arg("serve")
            .arg(package)
            .args(["--port", "0"])
            .args(flags)
            .env_remove("RATPLUS_LOG")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let (log, kept) = (Arc::new(Mutex::new(String::new())), 1 << 20);
        let (tell, told) = channel();
        let lines = log.clone();
        let reading = std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("listening on http://") {
                    let _ = tell.send(address.trim().to_owned());
                }
                let mut lines = lines.lock().unwrap();
                if lines.len() < kept {
                    *lines += &format!("{line}\n");
                }
            }
        });
        let address = told.recv_timeout(Duration::from_secs(60));
        let mut server = Self {
            address: ([127, 0, 0, 1], 0).into(),
            child,
            log,
            reading: Some(reading),
        };
        let address = address.unwrap_or_else(|_| panic!("no address: {}", server.log()));
        server.address = address.parse().unwrap();
        server
    }

    /// What it wrote to standard error, the first MiB of it.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until something is so.
    pub fn eventually(&self, what: &str, so: impl FnMut() -> bool) {
        assert!(becomes(so), "never: {what}: {}", self.log());
    }

    pub fn slots(&self) -> Value {
        get(self.address, "/slots").json()
    }

    /// What /slots tells once all requests have ended and no slot is in use.
    pub fn settled(&self) -> Value {
        let mut slots = Value::Null;
        self.eventually("all requests ended", || {
            slots = self.slots();
            let (totals, all) = (&slots["totals"], slots["slots"].as_array().unwrap());
            let free = all.iter().all(|slot| slot["activity"] == "free");
            free && slots["queued_requests"] == 0 && totals["submitted"] == totals["finished"]
        });
        slots
    }

    /// The answer to a request that has to be answered.
    pub fn completion(&self, body: &Value) -> Value {
        let answer = post(self.address, "/v1/completions", body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        answer.json()
    }

    /// A short greedy answer's text.
    pub fn text(&self) -> Value {
        let asked = json!({"prompt": "In the beginning", "max_tokens": 12, "temperature": 0});
        self.completion(&asked)["choices"][0]["text"].clone()
    }

    /// Bytes of its memory that are no file's.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.unwrap().trim().trim_end_matches(" kB").parse::<u64>();
        kilobytes.unwrap() * 1024
    }

    /// Sends it a signal, like -TERM.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(kill.success());
    }

    /// What it ends with, in a minute, and all that it wrote.
    pub fn ended(mut self) -> (ExitStatus, String) {
        let child = &mut self.child;
        let ended = becomes(|| child.try_wait().unwrap().is_some());
        assert!(ended, "never ended: {}", self.log());
        self.reading.take().unwrap().join().unwrap();
        (self.child.wait().unwrap(), self.log())
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
