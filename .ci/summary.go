// Summary reads the output of "go test -json" (and of make around it) on
// stdin. It prints the line of each package, what failed tests printed and why
// tests were skipped, and writes "N passed, N failed, N skipped" to the file it
// is given. It counts top-level tests and subtests alike, as go test -v prints
// them. The exit code is 1 if anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Output     string
}

type counts struct{ passed, failed, skipped int }

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go test -json ./... | summary FILE")
		os.Exit(2)
	}
	n, broken, err := read(os.Stdin)
	if err == nil {
		err = os.WriteFile(os.Args[1], fmt.Appendf(nil, "%d passed, %d failed, %d skipped\n", n.passed, n.failed, n.skipped), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	if n.failed > 0 || broken {
		os.Exit(1)
	}
}

// read counts the tests, and reports whether a package failed, which one that
// does not compile does without a test.
func read(in *os.File) (n counts, broken bool, err error) {
	output := map[string][]string{} // of tests that run
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Action == "" {
			fmt.Println(lines.Text())
			continue
		}
		if e.Test == "" {
			if e.Action == "output" || e.Action == "build-output" {
				if e.Output != "PASS\n" {
					fmt.Print(e.Output)
				}
			}
			broken = broken || e.Action == "fail" || e.Action == "build-fail"
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output":
			output[key] = append(output[key], e.Output)
			continue
		case "pass":
			n.passed++
		case "fail":
			n.failed++
			fmt.Print(strings.Join(output[key], ""))
		case "skip":
			n.skipped++
			fmt.Printf("skipped %s: %s\n", key, reason(output[key]))
		default:
			continue
		}
		delete(output, key)
	}
	// What a crash cut short has no verdict; its output says why.
	for key, text := range output {
		fmt.Printf("no verdict: %s\n%s", key, strings.Join(text, ""))
		broken = true
	}
	return n, broken, lines.Err()
}

// reason is what a skipped test said, without the marks around it.
func reason(output []string) string {
	var words []string
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			words = append(words, line)
		}
	}
	return strings.Join(words, " ")
}
