package archtest

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// root is the project's directory, seen from this package.
const root = "../.."

// Sizes beyond which a file or a function is not read in one go. A reason to exceed one is a row in longer.
const (
	maxFileLines     = 400
	maxFunctionLines = 60
)

// longer lists what may be longer, by file or file:function, with the reason.
var longer = map[string]string{}

// source is one parsed file.
type source struct {
	path string // relative to root
	text []byte
	set  *token.FileSet
	file *ast.File
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, text, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		all = append(all, source{rel, text, set, file})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("found %d source files: the walk is wrong", len(all))
	}
	return all
}

func (s source) isTest() bool { return strings.HasSuffix(s.path, "_test.go") }

func TestFormatted(t *testing.T) {
	for _, s := range sources(t) {
		if want, err := format.Source(s.text); err != nil || !bytes.Equal(want, s.text) {
			t.Errorf("%s: run gofmt", s.path)
		}
	}
}

func TestUnsafeIsConfined(t *testing.T) {
	for _, s := range sources(t) {
		if strings.HasSuffix(s.path, "_unsafe.go") || strings.HasSuffix(s.path, "_unsafe_test.go") {
			continue
		}
		for _, imp := range s.file.Imports {
			if imp.Path.Value == `"unsafe"` || imp.Path.Value == `"C"` {
				t.Errorf("%s imports %s: only *_unsafe.go may use unsafe, and nothing may use cgo", s.path, imp.Path.Value)
			}
		}
	}
}

func TestSizes(t *testing.T) {
	for _, s := range sources(t) {
		if s.isTest() {
			continue
		}
		if n := bytes.Count(s.text, []byte("\n")); n > maxFileLines && longer[s.path] == "" {
			t.Errorf("%s has %d lines, more than %d", s.path, n, maxFileLines)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			n := s.set.Position(f.End()).Line - s.set.Position(f.Pos()).Line + 1
			if n > maxFunctionLines && longer[s.path+":"+f.Name.Name] == "" {
				t.Errorf("%s: %s has %d lines, more than %d", s.path, f.Name.Name, n, maxFunctionLines)
			}
		}
	}
}

// TestPanicsAreOurBugs lets a panic stand only where it says "bug: ": input of any kind must not reach one.
func TestPanicsAreOurBugs(t *testing.T) {
	for _, s := range sources(t) {
		if s.isTest() || strings.Contains(s.path, "virtiotest") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "panic" && len(call.Args) == 1 && !saysBug(call.Args[0]) {
				t.Errorf("%s: a panic must begin with \"bug: \"", s.set.Position(call.Pos()))
			}
			return true
		})
	}
}

// saysBug finds the leading string literal of a panic's argument.
func saysBug(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		v, err := strconv.Unquote(e.Value)
		return err == nil && strings.HasPrefix(v, "bug: ")
	case *ast.BinaryExpr:
		return saysBug(e.X)
	case *ast.CallExpr:
		return len(e.Args) > 0 && saysBug(e.Args[0])
	}
	return false
}

func TestNothingIsLeftToDo(t *testing.T) {
	for _, s := range sources(t) {
		for _, group := range s.file.Comments {
			for _, word := range []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"} {
				if strings.Contains(group.Text(), word) {
					t.Errorf("%s: %s: open an issue instead", s.set.Position(group.Pos()), word)
				}
			}
		}
	}
}

// TestExportedIsDocumented wants a comment on every exported declaration outside tests.
func TestExportedIsDocumented(t *testing.T) {
	for _, s := range sources(t) {
		if s.isTest() {
			continue
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && receiverExported(d) {
					t.Errorf("%s: %s has no comment", s.set.Position(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if ts, ok := spec.(*ast.TypeSpec); ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil {
						t.Errorf("%s: type %s has no comment", s.set.Position(d.Pos()), ts.Name.Name)
					}
				}
			}
		}
	}
}

// receiverExported reports whether d is a function or a method of an exported type. Methods that satisfy a
// well-known interface explain themselves.
func receiverExported(d *ast.FuncDecl) bool {
	switch d.Name.Name {
	case "Error", "Is", "Unwrap", "String", "Read", "Write", "Close", "Len", "Less", "Swap":
		return false
	}
	if d.Recv == nil {
		return true
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

// JAIL-09: nothing in the tree is or becomes a setuid program.
func TestJAIL09NoSetuid(t *testing.T) {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 && !d.IsDir() {
			t.Errorf("JAIL-09: %s has mode %s", path, st.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
