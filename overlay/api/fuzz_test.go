package api

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"reflect"
	"testing"

	"github.com/pilotnet/pilot/overlay"
)

// FuzzDecode: a call's body that is taken means the same when it is written again, is
// one JSON object and nothing behind it, and is answered with a hint if it is refused.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"contact":"pilot1abc","reason":"please","ports":"80,443/udp","offer":"7"}`))
	f.Add([]byte(`{"peer":"alice","as":"al","ports":"80"}`))
	f.Add([]byte(`{"peer":"alice"} {"peer":"bob"}`))
	f.Add([]byte(`{"peer":"alice","unknown":1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, body []byte) {
		decodeAgain[overlay.RequestOptions](t, body)
		decodeAgain[overlay.ApproveOptions](t, body)
		decodeAgain[peerBody](t, body)
	})
}

func decodeAgain[T any](t *testing.T, body []byte) {
	from := func(body []byte) (in T, err error) {
		return in, decode(httptest.NewRecorder(), httptest.NewRequest("POST", "/", bytes.NewReader(body)), &in)
	}
	in, err := from(body)
	if err != nil {
		if e, ok := err.(*overlay.Error); !ok || e.Code != overlay.CodeInvalidArgument {
			t.Errorf("%q is refused with %v", body, err)
		}
		return
	}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := from(text); err != nil || !reflect.DeepEqual(in, again) {
		t.Errorf("%q is %+v, written again %+v, %v", body, in, again, err)
	}
	if _, err := from(append(bytes.Clone(body), "{}"...)); err == nil {
		t.Errorf("%q is taken with a second object behind it", body)
	}
}
