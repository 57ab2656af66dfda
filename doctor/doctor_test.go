package doctor

import (
	"context"
	"os"
	"strings"
	"testing"

	"spore/internal/testenv"
)

func TestMain(m *testing.M) {
	Hello()
	os.Exit(m.Run())
}

// TestGuestComesFar runs the test guest on this machine's own KVM, which must at least reach ring 3: every KVM
// does, with or without hardware.
func TestGuestComesFar(t *testing.T) {
	testenv.Require(t, testenv.KVM)
	reached, err := runGuest()
	t.Logf("reached stage %d, %v", reached, err)
	if reached < stageRing3 {
		t.Errorf("stage %d: %v", reached, err)
	}
	if (reached == stageSyscall) != (err == nil) {
		t.Errorf("stage %d with error %v", reached, err)
	}
}

func TestVerdictAgreesWithReport(t *testing.T) {
	testenv.Require(t, testenv.KVM)
	ctx := context.Background()
	dir := t.TempDir()
	report := Examine(ctx)
	kvmOK := true
	for _, f := range report.Findings {
		t.Logf("%-12s ok=%-5v %s", f.Name, f.OK, f.Detail)
		if f.Why == "" || !f.OK && (f.Detail == "" || f.Remedy == "") {
			t.Errorf("%s: a finding must say why, and a bad one what was seen and what to do: %+v", f.Name, f)
		}
		for _, s := range kvmSteps {
			kvmOK = kvmOK && (f.Name != s.name || f.OK)
		}
	}
	first := GuestsRunHere(ctx, dir)
	if (first == nil) != kvmOK {
		t.Errorf("verdict %v, report %v", first, kvmOK)
	}
	if again := GuestsRunHere(ctx, dir); (again == nil) != (first == nil) {
		t.Errorf("first %v, then %v", first, again)
	}
}

func TestRefusalsAreShort(t *testing.T) {
	for _, r := range []error{refusal(stageNone, os.ErrNotExist), refusal(stageNone, os.ErrPermission), refusal(stageRing3, nil), refusal(stageNone, nil)} {
		if strings.ContainsRune(r.Error(), '\n') || len(r.Error()) > 80 {
			t.Errorf("%q is not one short line", r)
		}
	}
}
