// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"strconv"
	"time"

	"github.com/seed5728abee/fathom/probe"
)

// Field is a column of statistics, named by the letter that mtr's option -o uses for it. A space
// is an empty column.
type Field byte

// The fields.
const (
	FieldLoss      Field = 'L' // percent lost
	FieldDropped   Field = 'D'
	FieldReceived  Field = 'R'
	FieldSent      Field = 'S'
	FieldLast      Field = 'N' // newest round-trip time
	FieldBest      Field = 'B'
	FieldAvg       Field = 'A'
	FieldWorst     Field = 'W'
	FieldStDev     Field = 'V'
	FieldGmean     Field = 'G'
	FieldJitter    Field = 'J'
	FieldJitterAvg Field = 'M'
	FieldJitterMax Field = 'X'
	FieldJitterInt Field = 'I'
	FieldSpace     Field = ' '
)

// DefaultFields are those that mtr shows unless told otherwise.
const DefaultFields = "LS NABWV"

// AllFields has the letters of all fields, in mtr's order.
const AllFields = "LDRSNBAWVGJMXI"

// ParseFields reads a list of field letters, such as "LSD NBAW".
func ParseFields(s string) ([]Field, error) {
	fields := make([]Field, len(s))
	for i := range len(s) {
		fields[i] = Field(s[i])
		if fields[i] != FieldSpace && fields[i].Title() == "" {
			return nil, &probe.RequestError{Field: "fields", Value: strconv.Quote(s), Reason: fmt.Sprintf("want letters of %s and spaces", AllFields)}
		}
	}
	return fields, nil
}

// Title is the column's heading, as in mtr; empty for a space and an unknown field.
func (f Field) Title() string {
	switch f {
	case FieldLoss:
		return "Loss%"
	case FieldDropped:
		return "Drop"
	case FieldReceived:
		return "Rcv"
	case FieldSent:
		return "Snt"
	case FieldLast:
		return "Last"
	case FieldBest:
		return "Best"
	case FieldAvg:
		return "Avg"
	case FieldWorst:
		return "Wrst"
	case FieldStDev:
		return "StDev"
	case FieldGmean:
		return "Gmean"
	case FieldJitter:
		return "Jttr"
	case FieldJitterAvg:
		return "Javg"
	case FieldJitterMax:
		return "Jmax"
	case FieldJitterInt:
		return "Jint"
	case FieldSpace:
	}
	return ""
}

// Width is the number of characters that mtr gives the column, with a leading space.
func (f Field) Width() int {
	switch f {
	case FieldLoss:
		return 8
	case FieldDropped, FieldJitter, FieldJitterAvg, FieldJitterMax, FieldJitterInt:
		return 5
	case FieldReceived, FieldSent, FieldLast, FieldBest, FieldAvg, FieldWorst, FieldStDev, FieldGmean:
		return 6
	case FieldSpace:
	}
	return 1
}

// Text is the field's value for a hop: percent and milliseconds with one decimal, counts without.
func (f Field) Text(h *HopStats) string {
	ms := func(d time.Duration) string {
		return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 1, 64)
	}
	switch f {
	case FieldLoss:
		return strconv.FormatFloat(h.Loss(), 'f', 1, 64) + "%"
	case FieldDropped:
		return strconv.Itoa(h.Dropped())
	case FieldReceived:
		return strconv.Itoa(h.Received)
	case FieldSent:
		return strconv.Itoa(h.Sent)
	case FieldLast:
		return ms(h.Last)
	case FieldBest:
		return ms(h.Best)
	case FieldAvg:
		return ms(h.Avg)
	case FieldWorst:
		return ms(h.Worst)
	case FieldStDev:
		return ms(h.StDev)
	case FieldGmean:
		return ms(h.Gmean)
	case FieldJitter:
		return ms(h.Jitter)
	case FieldJitterAvg:
		return ms(h.JitterAvg)
	case FieldJitterMax:
		return ms(h.JitterMax)
	case FieldJitterInt:
		return ms(h.JitterInt)
	case FieldSpace:
	}
	return ""
}
