//! What test runners print, counted.

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
                if result == "FAILED" {
                    totals.failures.push(format!("{suite}: {name}"));
                } else if let Some(reason) = result.strip_prefix("ignored") {
                    let reason = match reason.trim_start_matches([',', ' ']) {
                        "" => "marked #[ignore] without a reason",
                        reason => reason,
                    };
                    totals.skips.push(format!("{suite}: {name}: {reason}"));
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

/// Reads the output of `pytest -rs`.
#[derive(Debug, Default)]
pub struct Pytest {
    result: Option<Totals>,
    lines: Totals,
}

impl Pytest {
    /// One line of output.
    pub fn line(&mut self, line: &str) {
        if let Some(skip) = line.strip_prefix("SKIPPED [") {
            let skip = skip.split_once("] ").map_or(skip, |(_, rest)| rest);
            self.lines.skips.push(skip.to_owned());
        } else if let Some(test) = line.strip_prefix("XFAIL ") {
            self.lines.skips.push(format!("{test} (expected to fail)"));
        } else if let Some(test) = line
            .strip_prefix("FAILED ")
            .or_else(|| line.strip_prefix("ERROR "))
        {
            self.lines.failures.push(test.to_owned());
        } else if line.starts_with("==") && line.trim_end_matches([' ', '=']).contains(" in ") {
            let count = |word| Totals::number_before(line, word);
            self.result = Some(Totals {
                passed: count("passed"),
                failed: ["failed", "error", "errors", "xpassed"]
                    .map(count)
                    .iter()
                    .sum(),
                skipped: ["skipped", "xfailed", "deselected"].map(count).iter().sum(),
                ..Totals::default()
            });
        }
    }

    /// The end of the output.
    pub fn finish(self, success: bool, totals: &mut Totals) {
        let result = self.result.unwrap_or_default();
        totals.passed += result.passed;
        totals.failed += result.failed;
        totals.skipped += result.skipped;
        totals.failures.extend(self.lines.failures);
        totals.skips.extend(self.lines.skips);
        if !success && result.failed == 0 {
            totals.fail("pytest failed without a failed test");
        } else if success && result.passed == 0 {
            totals.fail("pytest ran no test");
        }
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

    fn pytest(output: &str, success: bool) -> Totals {
        let (mut reader, mut totals) = (Pytest::default(), Totals::default());
        for line in output.lines() {
            reader.line(line);
        }
        reader.finish(success, &mut totals);
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
        let output = "
test_a.py ..sF [100%]
=========================== short test summary info ============================
SKIPPED [2] test_a.py:9: needs a GPU in 3 places
FAILED test_a.py::test_b - assert 1 == 2
ERROR test_a.py::test_c - OSError
============ 1 failed, 12 passed, 2 skipped, 1 error in 3.21s (0:00:03) ============
";
        let totals = pytest(output, false);
        assert_eq!(totals.summary(), "12 passed, 2 failed, 2 skipped");
        assert_eq!(totals.skips, ["test_a.py:9: needs a GPU in 3 places"]);
        assert_eq!(totals.failures.len(), 2);
    }

    #[test]
    fn a_pytest_that_stops_is_a_failure() {
        assert_eq!(pytest("ImportError: conftest", false).failed, 1);
        assert_eq!(pytest("=== no tests ran in 0.01s ===", true).failed, 1);
        let totals = pytest("=== 3 passed in 0.01s ===", true);
        assert_eq!(totals.summary(), "3 passed, 0 failed, 0 skipped");
    }
}
