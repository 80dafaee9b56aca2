use super::*;

/// What is shown when a model writes `tokens` between `prefix` and `suffix` and ends for `reason`.
fn run_with(
    extent: Extent,
    stops: &[&str],
    around: (&str, &str),
    tokens: &[&str],
    reason: StopReason,
) -> (String, StopReason) {
    let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
    let around = Around { path: None, prefix: around.0, suffix: around.1 };
    let mut filter = OutputFilter::new(extent, &stops, around);
    let mut text = String::new();
    let mut found = reason;
    for token in tokens {
        let (pieces, end) = filter.push(token.as_bytes(), false);
        text.extend(pieces.into_iter().map(|piece| piece.text));
        if let Some(end) = end {
            found = end;
            break;
        }
    }
    text.extend(filter.finish(found).into_iter().map(|piece| piece.text));
    (text, found)
}

/// The same whatever the tokens are.
fn run(
    extent: Extent,
    stops: &[&str],
    around: (&str, &str),
    written: &str,
    reason: StopReason,
) -> (String, StopReason) {
    let whole = run_with(extent, stops, around, &[written], reason);
    let letters: Vec<String> = written.chars().map(String::from).collect();
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    assert_eq!(run_with(extent, stops, around, &letters, reason), whole, "{written:?}");
    whole
}

fn shown(prefix: &str, suffix: &str, written: &str) -> String {
    run(Extent::Auto, &[], (prefix, suffix), written, StopReason::EndOfText).0
}

#[test]
fn stop_strings_are_found_across_tokens_and_left_out() {
    let run = |stops: &[&str], tokens: &[&str]| {
        run_with(Extent::Raw, stops, ("", ""), tokens, StopReason::EndOfText)
    };
    let stopped = |text: &str| (text.to_owned(), StopReason::StopString);
    assert_eq!(run(&["\ndef "], &["return x", "\n", "de", "f y"]), stopped("return x"));
    assert_eq!(run(&["aab"], &["xa", "aa", "b!"]), stopped("xa"));
    assert_eq!(run(&["END", "\n\n"], &["a\n", "\nb"]), stopped("a"));
    assert_eq!(run(&["\n\n"], &["a\n", "b\n"]), ("a\nb\n".to_owned(), StopReason::EndOfText));
}

#[test]
fn closers_that_are_there_already_are_not_repeated() {
    for (prefix, suffix, written, expected) in [
        ("math.sqrt(", ")\n", "x)", "x"),
        ("math.sqrt(", ")\n", "x) + y", "x"),
        ("print(", ")\n", "f(a) + g(b)", "f(a) + g(b)"),
        ("print(", ")\n", "g(b)", "g(b)"),
        ("a = f(", ", end)\n", "start, end)", "start"),
        ("a = f(", ", end)\n", "start)", "start"),
        ("print(math.sqrt(", ")\n", "x)", "x)"),
        ("print(math.sqrt(", "))\n", "x))", "x"),
        ("x = [f(", "]\n", "a)", "a)"),
        ("foo(\n    bar(", ")\n)\n", "x)", "x"),
        ("foo(\n    bar(baz(", ")\n)\n", "x)", "x)"),
        ("let x = ", ";\n", "1;", "1"),
        ("let x = ", ";\n", "f(1);", "f(1)"),
        ("if (", ") {\n}\n", "x > 1) {", "x > 1"),
        ("if ", " {\n    y();\n}\n", "x > 1 {", "x > 1"),
        ("x = \"", "\"\n", "abc\"", "abc"),
        ("x = f(\"", "\")\n", "abc\")", "abc"),
        ("x = \"", "\n", "abc\"", "abc\""),
        ("x = {", "}\n", "'a': (1, 2), 'b': [3]}", "'a': (1, 2), 'b': [3]"),
        ("f(", ")\n", "')'", "')'"),
        ("def f():\n    \"\"\"Don't call g(", ") here\n", "x, y) and", "x, y"),
        ("import x\n# see f(", ") there\n", "a) it's", "a"),
    ] {
        assert_eq!(shown(prefix, suffix, written), expected, "{prefix}|{suffix} {written}");
    }
}

#[test]
fn what_a_line_opens_is_closed() {
    for (prefix, suffix, written, expected) in [
        ("x = g(", ")\n", "f(a", "f(a)"),
        ("let v = ", ";\n", "vec![\n    1,\n]", "vec![]"),
        ("x = ", ")\n", "f(a", "f(a"),
        ("x = g(", ")\n", "\"(\"", "\"(\""),
    ] {
        assert_eq!(shown(prefix, suffix, written), expected, "{prefix}|{suffix} {written}");
    }
}

#[test]
fn a_line_ends_with_its_line() {
    let around = ("x = f(", ")\ny = 2\n");
    assert_eq!(
        run(Extent::Auto, &[], around, "a, b\ny = 3", StopReason::EndOfText),
        ("a, b".to_owned(), StopReason::EndOfLine)
    );
    // Its end is found with a stop string too.
    let stopped = run(Extent::Auto, &["\n\n"], around, "a, b)\n\nz", StopReason::EndOfText);
    assert_eq!(stopped, ("a, b".to_owned(), StopReason::FollowingText));
    assert_eq!(run(Extent::Auto, &["#"], ("x = ", ";\n"), "1; # one", StopReason::EndOfText).0, "1");
    // Words stay whole, and the accident of a letter is none of the rest.
    assert_eq!(shown("foo(", ", bar)\n", "bar, b"), "bar, b");
    assert_eq!(shown("range(0, ", " - 1)\n", "n "), "n");
    let line = run(Extent::Line, &[], ("x = ", "\ny = 2\n"), "1\nz = 3", StopReason::EndOfText);
    assert_eq!(line, ("1".to_owned(), StopReason::EndOfLine));
}

#[test]
fn a_block_ends_where_the_block_ends() {
    let body = "def f(x):\n    ";
    for (prefix, suffix, written, expected) in [
        // Indentation, a blank line, a fence.
        (body, "", "y = x\n    return y\ndef g():\n", "y = x\n    return y"),
        (body, "", "return x\n\ndef g():\n", "return x"),
        (body, "", "return x\n```\nThis", "return x"),
        (body, "", "```python\nreturn x\n", ""),
        ("def f(x):", "\n", "\n    y = 1\n    return y\nprint(f(1))\n", "\n    y = 1\n    return y"),
        ("if x:", "\n", "\n    y = 1\nelse:\n    y = 2\nz = 3", "\n    y = 1\nelse:\n    y = 2"),
        // Brackets that are closed below already, and those that are not.
        ("fn f() {\n    ", "\n}\n", "let x = 1;\n    x\n}\n\nfn g() {", "let x = 1;\n    x"),
        ("fn f() {\n    ", "", "let x = 1;\n    x\n}\n\nfn g() {", "let x = 1;\n    x\n}"),
        ("fn f() {\n    if x {\n        ", "\n}\n", "y();\n    }\n}\n", "y();\n    }"),
        ("foo(\n    a,\n    ", "\n);\n", "b,\n);\n", "b,"),
        // A blank line within brackets that were opened is none of its ends.
        ("x = ", "\n", "[\n    1,\n\n    2,\n]\ny = 1", "[\n    1,\n\n    2,\n]"),
        ("import os", "\n", "\n\ndef f():\n    pass\n\ndef g():", "\n\ndef f():\n    pass"),
        // The following lines.
        (body, "\n    return x\n\nprint(1)\n", "x += 1\n    return x\n\nprint(1)\n", "x += 1"),
        (body, "\n    return x\n    print(1)\n", "x += 1\n    return x\n    print(1)\n", "x += 1"),
        (body, "\n    x += 1\n    return x\n", "x += 1", "x += 1"),
        (body, "\n    x += 1\n    return x\n", "x += 1\n    return x\n", ""),
        (body, "\n    return None\n", "total += x\n    return", "total += x\n    return"),
    ] {
        assert_eq!(shown(prefix, suffix, written), expected, "{prefix}|{suffix} {written}");
    }
}

#[test]
fn whole_lines_are_inserted_before_a_line() {
    let suffix = "    return x\n";
    assert_eq!(shown("def f(x):\n", suffix, "    x += 1\n"), "    x += 1\n");
    assert_eq!(shown("def f(x):\n", suffix, "    x += 1"), "    x += 1\n");
    assert_eq!(shown("def f(x):\n", suffix, "    x += 1\n    return x\n\n"), "    x += 1\n");
    // One line that comes twice is not the end.
    assert_eq!(shown("def f(x):\n", "    x += 1\n    return x\n", "    x += 1\n"), "    x += 1\n");
}

#[test]
fn a_limit_leaves_whole_lines() {
    let body = ("def f(x):\n    ", "");
    let cut = |written| run(Extent::Auto, &[], body, written, StopReason::MaxTokens).0;
    assert_eq!(cut("total = 0\n    for value in valu"), "total = 0");
    assert_eq!(cut("total = su"), "total = su");
}

#[test]
fn the_first_line_comes_as_it_is_written() {
    let around = Around { path: None, prefix: "x = ", suffix: "\n" };
    let mut filter = OutputFilter::new(Extent::Auto, &[], around);
    assert_eq!(filter.push(b"ab", false).0[0].text, "ab");
    assert_eq!(filter.push(b" ", true).0, []);
    let expected = [(" c", true)].map(|(text, drafted)| Piece { text: text.to_owned(), drafted });
    assert_eq!(filter.push(b"c", true).0, expected);
    assert_eq!(filter.push(b"\ny", false).0, [], "a second line waits for its end");
}

#[test]
fn half_characters_wait() {
    let around = Around { path: None, prefix: "", suffix: "" };
    let mut filter = OutputFilter::new(Extent::Auto, &[], around);
    assert_eq!(filter.push(&"é".as_bytes()[..1], false).0, []);
    assert_eq!(filter.push(&"é".as_bytes()[1..], false).0[0].text, "é");
    filter.push(&"🦀".as_bytes()[..2], false);
    assert_eq!(filter.finish(StopReason::EndOfText)[0].text, "\u{fffd}");
}

/// Whatever is written wherever: nothing that was shown is taken back, and tokens make no difference.
#[test]
fn random_texts_are_cut_alike_however_they_come() {
    let mut state = 11u64;
    let mut next = move |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    const PIECES: [&str; 22] = [
        "a", "bc", " ", "    ", "(", ")", "[", "]", "{", "}", "\n", "\n", "\"", "'", ";", ",", ":", "def f",
        "```", "#", "return x", "é",
    ];
    for _ in 0..20_000 {
        let mut text = |max: usize| (0..next(max)).map(|_| PIECES[next(PIECES.len())]).collect::<String>();
        let (prefix, suffix, written) = (text(12), text(12), text(16));
        let reason = [StopReason::EndOfText, StopReason::MaxTokens][next(2)];
        let extent = [Extent::Auto, Extent::Line, Extent::Raw][next(3)];
        let stops: &[&str] = if next(3) == 0 { &["\n\n", "return"] } else { &[] };
        run(extent, stops, (&prefix, &suffix), &written, reason);
    }
}

/// A model that goes round in circles is stopped, with brackets closed and lines whole.
#[test]
fn circles_end_the_completion() {
    let line = run(Extent::Auto, &[], ("x = f(", ")\n"), &"a, (1, ".repeat(90), StopReason::MaxTokens);
    assert_eq!(line.1, StopReason::Repetition);
    assert_eq!(line.0.matches('(').count(), line.0.matches(')').count(), "{}", line.0);
    assert!(line.0.len() < 250, "{}", line.0);
    let block = run(
        Extent::Auto,
        &[],
        ("def f():\n    ", ""),
        &"print(value, 1)\n    ".repeat(40),
        StopReason::MaxTokens,
    );
    assert_eq!(block.1, StopReason::Repetition);
    assert!(block.0.lines().all(|line| line.trim() == "print(value, 1)"), "{}", block.0);
    assert!((5..9).contains(&block.0.lines().count()), "{}", block.0);
    let raw = run(Extent::Raw, &[], ("", ""), &"again ".repeat(60), StopReason::MaxTokens);
    assert_eq!(raw, ("again ".repeat(60), StopReason::MaxTokens), "raw is raw");
}

/// A first line that is the following one is held back, whatever white space ends it.
#[test]
fn following_lines_are_recognised_behind_carriage_returns() {
    let lines = "é中🦀\r\n\t\t x 0000\r\n";
    for written in [lines, "é中🦀 \n x 0000\n", "é中🦀\t\r\n x 0000\n"] {
        assert_eq!(run(Extent::Auto, &[], ("", lines), written, StopReason::EndOfText).0, "", "{written:?}");
    }
}
