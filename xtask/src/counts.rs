//! Results of test runners, counted.

/// Results of all test runs together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tests that ran and held.
    pub passed: usize,
    /// Tests that ran and did not hold, and runs that ended badly on their own account.
    pub failed: usize,
    /// Tests that did not run.
    pub skipped: usize,
    /// One line for each failure.
    pub failures: Vec<String>,
    /// One line for each skip, with its reason.
    pub skips: Vec<String>,
    /// What became of each test, `suite: name` or `file::name`.
    pub tests: Vec<(String, Ending)>,
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It held.
    Passed,
    /// It did not.
    Failed,
    /// It did not run, for this reason.
    Skipped(String),
}

impl Totals {
    /// Counts something that failed outside of any test.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.failed += 1;
        self.failures.push(what.into());
    }

    /// Counts something that was left out outside of any test.
    pub fn skip(&mut self, what: impl Into<String>) {
        self.skipped += 1;
        self.skips.push(what.into());
    }

    /// The line that ends a test run.
    pub fn summary(&self) -> String {
        let Self {
            passed,
            failed,
            skipped,
            ..
        } = self;
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    /// The number before `word` in `text`, 0 where there is none.
    fn number_before(text: &str, word: &str) -> usize {
        let words: Vec<_> = text
            .split([' ', ',', ';', '=', '.'])
            .filter(|word| !word.is_empty())
            .collect();
        let pairs = words.windows(2);
        pairs
            .filter(|pair| pair[1] == word)
            .find_map(|pair| pair[0].parse().ok())
            .unwrap_or(0)
    }
}

/// Reads the output of `cargo test`.
#[derive(Debug, Default)]
pub struct CargoTest {
    /// The suite that runs, and whether it has reported.
    suite: Option<(String, bool)>,
    silent: Vec<String>,
    suites: usize,
}

impl CargoTest {
    /// One line of output.
    pub fn line(&mut self, line: &str, totals: &mut Totals) {
        let text = line.trim();
        if let Some(target) = text.strip_prefix("Running ") {
            let stem = target.rsplit(['/', '\\']).next().unwrap_or(target);
            let name = stem.rsplit_once('-').map_or(stem, |(name, _)| name);
            self.enter(name);
        } else if let Some(name) = text.strip_prefix("Doc-tests ") {
            self.enter(&format!("{name} (documentation)"));
        } else if let Some(result) = text.strip_prefix("test result: ") {
            totals.passed += Totals::number_before(result, "passed");
            totals.failed += Totals::number_before(result, "failed");
            totals.skipped += Totals::number_before(result, "ignored");
            if let Some((_, reported)) = &mut self.suite {
                *reported = true;
            }
        } else if let Some(test) = text.strip_prefix("test ") {
            let suite = self.suite.as_ref().map_or("?", |(name, _)| name);
            if let Some((name, result)) = test.rsplit_once(" ... ") {
                let test = format!("{suite}: {name}");
                if result == "ok" {
                    totals.tests.push((test, Ending::Passed));
                } else if result == "FAILED" {
                    totals.failures.push(test.clone());
                    totals.tests.push((test, Ending::Failed));
                } else if let Some(reason) = result.strip_prefix("ignored") {
                    let reason = match reason.trim_start_matches([',', ' ']) {
                        "" => "marked #[ignore] without a reason",
                        reason => reason,
                    };
                    totals.skips.push(format!("{test}: {reason}"));
                    totals.tests.push((test, Ending::Skipped(reason.into())));
                }
            }
        }
    }

    fn enter(&mut self, name: &str) {
        if let Some((name, false)) = self.suite.replace((name.to_owned(), false)) {
            self.silent.push(name);
        }
        self.suites += 1;
    }

    /// The end of the output. A suite that ended without a result counts as failed where the
    /// whole run failed: it crashed.
    pub fn finish(mut self, success: bool, totals: &mut Totals) {
        if let Some((name, false)) = self.suite.take() {
            self.silent.push(name);
        }
        if !success {
            for name in &self.silent {
                totals.fail(format!("{name}: ended without a result"));
            }
            if totals.failed == 0 {
                totals.fail("cargo test failed without a failed test");
            }
        } else if self.suites == 0 {
            totals.fail("cargo test ran no test");
        }
    }
}

/// Counts what `pytest --junitxml` wrote: a run without failures has to have passed one test.
pub fn pytest(report: &str, success: bool, totals: &mut Totals) {
    let document = match roxmltree::Document::parse(report) {
        Ok(document) => document,
        Err(error) => return totals.fail(format!("pytest wrote no report: {error}")),
    };
    let before = (totals.passed, totals.failed);
    for case in document
        .descendants()
        .filter(|node| node.has_tag_name("testcase"))
    {
        let part = |name| case.attribute(name).unwrap_or_default();
        let test = format!("{}::{}", part("classname"), part("name"));
        let of = |tags: &[&str]| {
            let result = case
                .children()
                .find(|node| tags.contains(&node.tag_name().name()))?;
            let words = result.attribute("message").unwrap_or_default();
            Some(words.lines().next().unwrap_or_default().to_owned())
        };
        let ending = if let Some(words) = of(&["failure", "error"]) {
            totals.fail(format!("{test}: {words}"));
            Ending::Failed
        } else if let Some(words) = of(&["skipped"]) {
            totals.skip(format!("{test}: {words}"));
            Ending::Skipped(words)
        } else {
            totals.passed += 1;
            Ending::Passed
        };
        totals.tests.push((test, ending));
    }
    if !success && totals.failed == before.1 {
        totals.fail("pytest failed without a failed test");
    } else if success && totals.passed == before.0 {
        totals.fail("pytest ran no test");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cargo(output: &str, success: bool) -> Totals {
        let (mut reader, mut totals) = (CargoTest::default(), Totals::default());
        for line in output.lines() {
            reader.line(line, &mut totals);
        }
        reader.finish(success, &mut totals);
        totals
    }

    fn pytest(report: &str, success: bool) -> Totals {
        let mut totals = Totals::default();
        super::pytest(report, success, &mut totals);
        totals
    }

    #[test]
    fn cargo_test_is_counted() {
        let output = "
     Running unittests src/lib.rs (target/release/deps/ratplus_graphs-0b1c2d)

running 4 tests
test pattern::tests::a ... ok
test pattern::tests::b ... FAILED
test slow ... ignored, takes an hour
test bare ... ignored

test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s

   Doc-tests ratplus_graphs

running 1 test
test graphs/src/lib.rs - main (line 3) ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.20s
";
        let totals = cargo(output, false);
        assert_eq!(totals.summary(), "2 passed, 1 failed, 2 skipped");
        assert_eq!(totals.failures, ["ratplus_graphs: pattern::tests::b"]);
        assert_eq!(
            totals.skips,
            [
                "ratplus_graphs: slow: takes an hour",
                "ratplus_graphs: bare: marked #[ignore] without a reason"
            ]
        );
    }

    #[test]
    fn a_crashed_suite_is_a_failure() {
        let output = "
     Running unittests src/lib.rs (target/release/deps/one-0b1c)
test a ... ok
error: test failed, to rerun pass `-p one --lib`
     Running tests/two.rs (target/release/deps/two-0b1c)
test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.20s
";
        let totals = cargo(output, false);
        assert_eq!((totals.passed, totals.failed), (3, 1));
        assert_eq!(totals.failures, ["one: ended without a result"]);
        assert_eq!(cargo("error: could not compile `one`", false).failed, 1);
        assert_eq!(cargo("", true).failed, 1);
    }

    #[test]
    fn pytest_is_counted() {
        let report = r#"<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests">
<testsuite name="pytest" errors="1" failures="1" skipped="2" tests="5" time="0.4">
<testcase classname="test_a" name="test_ok[1]" time="0.1" />
<testcase classname="test_a" name="test_gpu"><skipped type="pytest.skip" message="needs a GPU">x.py:9</skipped></testcase>
<testcase classname="test_a" name="test_known"><skipped type="pytest.xfail" message="" /></testcase>
<testcase classname="test_a" name="test_b"><failure message="assert 1 == 2&#10;more">text</failure></testcase>
<testcase classname="test_a" name="test_c"><error message="OSError">text</error></testcase>
</testsuite></testsuites>"#;
        let totals = pytest(report, false);
        assert_eq!(totals.summary(), "1 passed, 2 failed, 2 skipped");
        assert_eq!(
            totals.skips,
            ["test_a::test_gpu: needs a GPU", "test_a::test_known: "]
        );
        assert_eq!(
            totals.failures,
            ["test_a::test_b: assert 1 == 2", "test_a::test_c: OSError"]
        );
    }

    #[test]
    fn a_pytest_that_stops_is_a_failure() {
        assert_eq!(pytest("", false).failed, 1);
        let none = "<testsuites><testsuite tests=\"0\" /></testsuites>";
        assert_eq!(pytest(none, true).failed, 1);
        assert_eq!(pytest(none, false).failed, 1);
        let one = "<testsuites><testcase classname=\"a\" name=\"b\" /></testsuites>";
        assert_eq!(pytest(one, true).summary(), "1 passed, 0 failed, 0 skipped");
        assert_eq!(
            pytest(one, false).summary(),
            "1 passed, 1 failed, 0 skipped"
        );
    }
}
