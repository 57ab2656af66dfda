package api_test

import (
	"encoding/json"
	"testing"

	"spore/vmm/api"
)

func TestMAC(t *testing.T) {
	for text, good := range map[string]bool{
		"02:00:5e:10:00:ff": true, "02:00:5E:10:00:FF": true,
		"": false, "02:00:5e:10:00": false, "02:00:5e:10:00:ff:01": false, "02-00-5e-10-00-ff": false, "02:00:5e:10:00:fg": false, "2:0:5e:10:0:ff:1:2": false,
	} {
		m, err := api.ParseMAC(text)
		if (err == nil) != good || good && m != (api.MAC{2, 0, 0x5e, 0x10, 0, 0xff}) {
			t.Errorf("%q: %v, %v", text, m, err)
		}
	}
	in := api.Net{MAC: api.MAC{2, 0, 0, 0, 0, 7}}
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out api.Net
	if err := json.Unmarshal(raw, &out); err != nil || out != in {
		t.Errorf("%s became %+v, %v", raw, out, err)
	}
	if (api.MAC{}).Individual() || (api.MAC{1}).Individual() || !in.MAC.Individual() {
		t.Error("an address that is nobody's or a group's is taken for an interface's")
	}
}
